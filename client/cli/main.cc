// `ultrasketch`: compresses models and generates text from them. See --help.
#include "client/cli/command.h"

int main(int argc, char** argv) { return ultrasketch::cli::RunCommandLine(argc, argv); }
