#!/usr/bin/env bash
# safetensors 0.8.0 (PyPI) writes files that only their owner may read, whatever the umask is.
#
# Seen, with umask 022:
#   a file that Python writes:              mode 644
#   a file that safetensors.save_file writes: mode 600
# So a model that one user saved, transformers' save_pretrained included, cannot be read by another
# (a server in a container that runs as nobody) before chmod a+r. Exits non-zero when that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check safetensors==0.8.0 numpy==2.4.6
umask 022
"$folder/venv/bin/python" - "$folder" <<'PYTHON'
import sys

import numpy
from safetensors.numpy import save_file

open(f"{sys.argv[1]}/plain", "w").close()
save_file({"a": numpy.zeros(2, dtype=numpy.float32)}, f"{sys.argv[1]}/model.safetensors")
PYTHON
plain=$(stat -c %a "$folder/plain")
saved=$(stat -c %a "$folder/model.safetensors")
echo "a file that Python writes: mode $plain"
echo "a file that safetensors.save_file writes: mode $saved"
[ "$plain" = 644 ] && [ "$saved" = 600 ]
