#include "server/metrics_endpoint.h"

#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <optional>
#include <sstream>
#include <string>
#include <thread>
#include <utility>

#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/beast/core/flat_buffer.hpp>
#include <boost/beast/core/tcp_stream.hpp>
#include <boost/beast/http.hpp>
#include <prometheus/text_serializer.h>
#include <sys/socket.h>

#include "engine/base/status.h"
#include "engine/base/thread_name.h"

namespace ultrasketch {
namespace {

namespace asio = boost::asio;
namespace http = boost::beast::http;
using asio::ip::tcp;
using boost::system::error_code;
using Collectables = std::vector<std::shared_ptr<prometheus::Collectable>>;

constexpr size_t kMaxConnections = 16;
constexpr uint32_t kMaxHeaderBytes = 8192;
// To send a request, and to take the answer.
constexpr std::chrono::seconds kReadTime{2};
constexpr std::chrono::seconds kWriteTime{10};
constexpr std::chrono::milliseconds kAcceptRetryTime{100};

std::string Collect(const Collectables& collectables) {
  std::vector<prometheus::MetricFamily> families;
  for (const auto& collectable : collectables) {
    for (prometheus::MetricFamily& family : collectable->Collect()) {
      families.push_back(std::move(family));
    }
  }
  std::ostringstream text;
  prometheus::TextSerializer().Serialize(text, families);
  return std::move(text).str();
}

using Response = http::response<http::string_body>;

Response Answer(const http::request<http::empty_body>& request, const Collectables& collectables) {
  Response response(http::status::ok, request.version());
  response.set(http::field::content_type, "text/plain; charset=utf-8");
  const auto path = request.target().substr(0, request.target().find('?'));
  const bool is_head = request.method() == http::verb::head;
  if (!is_head && request.method() != http::verb::get) {
    response.result(http::status::method_not_allowed);
    response.set(http::field::allow, "GET, HEAD");
  } else if (path != "/metrics") {
    response.result(http::status::not_found);
    response.body() = "there is /metrics\n";
  } else {
    response.set(http::field::content_type, "text/plain; version=0.0.4; charset=utf-8");
    response.body() = Collect(collectables);
  }
  response.keep_alive(false);
  response.prepare_payload();
  if (is_head) response.body().clear();
  return response;
}

}  // namespace

// Everything runs on one thread: a scrape is rare, and one after the other is as quick.
class MetricsEndpoint::Impl {
 public:
  Impl(const ListeningSockets& sockets, Collectables collectables)
      : collectables_(std::move(collectables)) {
    for (const int descriptor : sockets.descriptors()) {
      acceptors_.push_back(std::make_unique<Acceptor>(context_, descriptor));
      Accept(*acceptors_.back());
    }
    thread_ = std::thread([this] {
      NameThisThread("metrics");
      context_.run();
    });
  }

  ~Impl() {
    context_.stop();
    thread_.join();
    is_stopping_ = true;
  }

 private:
  struct Acceptor {
    Acceptor(asio::io_context& context, int descriptor) : retry_timer(context), acceptor(context) {
      sockaddr_storage address = {};
      socklen_t size = sizeof(address);
      getsockname(descriptor, reinterpret_cast<sockaddr*>(&address), &size);
      acceptor.assign(address.ss_family == AF_INET6 ? tcp::v6() : tcp::v4(), dup(descriptor));
    }

    asio::steady_timer retry_timer;
    tcp::acceptor acceptor;
    bool is_waiting = false;  // for a connection to end
  };

  // Reads one request, answers it, and closes.
  class Connection : public std::enable_shared_from_this<Connection> {
   public:
    Connection(tcp::socket socket, Impl& endpoint)
        : endpoint_(endpoint), stream_(std::move(socket)) {
      ++endpoint_.num_connections_;
    }
    ~Connection() { endpoint_.OnConnectionEnd(); }

    void Read() {
      parser_.header_limit(kMaxHeaderBytes);
      stream_.expires_after(kReadTime);
      http::async_read_header(stream_, buffer_, parser_,
                              [self = shared_from_this()](const error_code& error, size_t) {
                                if (!error) self->Write();
                              });
    }

   private:
    void Write() {
      response_ = Answer(parser_.get(), endpoint_.collectables_);
      stream_.expires_after(kWriteTime);
      const bool is_head = parser_.get().method() == http::verb::head;
      serializer_.emplace(*response_);
      serializer_->split(is_head);
      const auto on_written = [self = shared_from_this()](error_code error, size_t) {
        self->stream_.socket().shutdown(tcp::socket::shutdown_send, error);
      };
      if (is_head) {
        http::async_write_header(stream_, *serializer_, on_written);
      } else {
        http::async_write(stream_, *serializer_, on_written);
      }
    }

    Impl& endpoint_;
    boost::beast::tcp_stream stream_;
    boost::beast::flat_buffer buffer_{kMaxHeaderBytes};
    http::request_parser<http::empty_body> parser_;
    std::optional<Response> response_;
    std::optional<http::response_serializer<http::string_body>> serializer_;
  };

  // Connections beyond the limit stay in the system's queue.
  void Accept(Acceptor& from) {
    from.is_waiting = num_connections_ >= kMaxConnections;
    if (from.is_waiting) return;
    from.acceptor.async_accept([this, &from](const error_code& error, tcp::socket socket) {
      if (!error) {
        std::make_shared<Connection>(std::move(socket), *this)->Read();
        Accept(from);
        return;
      }
      // No file descriptor is left, say.
      from.retry_timer.expires_after(kAcceptRetryTime);
      from.retry_timer.async_wait([this, &from](const error_code& timer_error) {
        if (!timer_error) Accept(from);
      });
    });
  }

  void OnConnectionEnd() {
    --num_connections_;
    if (is_stopping_) return;
    for (const auto& acceptor : acceptors_) {
      if (acceptor->is_waiting) Accept(*acceptor);
    }
  }

  const Collectables collectables_;
  size_t num_connections_ = 0;
  bool is_stopping_ = false;
  asio::io_context context_{1};  // its end is that of open connections
  std::vector<std::unique_ptr<Acceptor>> acceptors_;
  std::thread thread_;  // last: it uses everything above
};

MetricsEndpoint::MetricsEndpoint(ListenAddress address, std::unique_ptr<Impl> impl)
    : address_(std::move(address)), impl_(std::move(impl)) {}
MetricsEndpoint::~MetricsEndpoint() = default;

absl::StatusOr<std::unique_ptr<MetricsEndpoint>> MetricsEndpoint::Start(const ListenAddress& listen,
                                                                        Collectables collectables) {
  US_ASSIGN_OR_RETURN(const ListeningSockets sockets, ListeningSockets::Open(listen));
  return std::unique_ptr<MetricsEndpoint>(new MetricsEndpoint(
      sockets.address(), std::make_unique<Impl>(sockets, std::move(collectables))));
}

}  // namespace ultrasketch
