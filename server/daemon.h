// The life of a server process: load, serve, drain.
#ifndef ULTRASKETCH_SERVER_DAEMON_H_
#define ULTRASKETCH_SERVER_DAEMON_H_

#include "absl/status/status.h"

#include "server/options.h"

namespace ultrasketch {

// Serves until a signal asks for the end, then drains; a second signal ends the draining. After
// ShutdownSignals::Block. An error says why there is nothing that could be served.
absl::Status RunDaemon(DaemonOptions options);

}  // namespace ultrasketch

#endif  // ULTRASKETCH_SERVER_DAEMON_H_
