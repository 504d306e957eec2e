// Writes a completion to the terminal as it arrives.
//
//   stream HOST:PORT PROMPT [MODEL]
#include <iostream>

#include "absl/time/time.h"

#include "ultrasketch/client.h"

using ultrasketch::client::Client;
using ultrasketch::client::GenerateDelta;

int main(int argc, char** argv) {
  if (argc < 3) {
    std::cerr << "usage: stream HOST:PORT PROMPT [MODEL]\n";
    return 2;
  }
  auto client = Client::Create(argv[1]);
  if (!client.ok()) {
    std::cerr << client.status().message() << '\n';
    return 1;
  }
  const ultrasketch::client::GenerateRequest request = {
      .model = argc > 3 ? argv[3] : "", .prompt = argv[2], .max_tokens = 64};
  const auto response = (*client)->GenerateStream(
      request, [](const GenerateDelta& delta) { std::cout << delta.text << std::flush; },
      {.timeout = absl::Seconds(60)});
  std::cout << '\n';
  if (!response.ok()) {
    std::cerr << response.status().ToString() << '\n';
    return 1;
  }
  std::cerr << response->usage.completion_tokens << " tokens, seed " << response->seed << '\n';
  return 0;
}
