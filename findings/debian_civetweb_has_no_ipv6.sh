#!/usr/bin/env bash
# civetweb 1.15+dfsg-4 (Debian 12, libcivetweb1), which serves for prometheus::Exposer of prometheus-cpp 1.0.1-1:
# civetweb's documentation of `listening_ports` gives [::1]:8080 as an example, and its own CMake build has IPv6 unless
# it is switched off. Seen: the library as packaged refuses every address in IPv6, whatever the machine has; one in IPv4
# is taken. prometheus::Exposer says no more than "null context when constructing CivetServer".
# Exits with 0 when that is so, else with 1. Needs gcc and apt-get of Debian 12.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
apt-get download -qq libcivetweb1=1.15+dfsg-4 libcivetweb-dev=1.15+dfsg-4 2>/dev/null
for package in *.deb; do dpkg -x "$package" root; done
cat >listen.c <<'C'
#include <stdio.h>
#include <string.h>

#include <civetweb.h>

static int Listens(const char* ports) {
  const char* options[] = {"listening_ports", ports, "num_threads", "1", NULL};
  struct mg_callbacks callbacks;
  memset(&callbacks, 0, sizeof(callbacks));
  struct mg_context* context = mg_start(&callbacks, NULL, options);
  printf("%-14s %s\n", ports, context != NULL ? "listens" : "refused");
  if (context == NULL) return 0;
  mg_stop(context);
  return 1;
}

int main(void) {
  mg_init_library(0);
  const int ipv4 = Listens("127.0.0.1:0");
  const int ipv6 = Listens("[::1]:0") + Listens("[::]:0");
  return ipv4 == 1 && ipv6 == 0 ? 0 : 1;
}
C
library=$folder/root/usr/lib/$(gcc -print-multiarch)
gcc -O1 -I root/usr/include listen.c -o listen -L "$library" -lcivetweb
LD_LIBRARY_PATH=$library ./listen
