// Streams, events and graphs: work is queued when it is asked for and happens at a synchronisation or at seeded random
// moments, in any order that streams and events allow. So a missing wait or an early free shows.
#pragma once

#include <chrono>
#include <deque>
#include <functional>
#include <memory>
#include <string>
#include <vector>

namespace emu {

struct Capture;

// Something to do; an empty string, or what went wrong.
using Work = std::function<std::string()>;

struct Stream;
// The first `number` pieces of work of a stream.
struct Progress {
    Stream* stream = nullptr;
    uint64_t number = 0;
};

struct Stream {
    struct Item {
        Work work;
        std::vector<Progress> after;
    };
    bool blocking;  // takes its turn with the legacy default stream
    bool destroyed = false;
    uint64_t issued = 0, finished = 0;
    std::deque<Item> queue;
    std::shared_ptr<Capture> capture;
    std::vector<size_t> capture_front;  // nodes that the next one captured comes after
};

struct Event {
    Progress progress;
    std::shared_ptr<std::chrono::steady_clock::time_point> time;  // when the work before it was done
    std::shared_ptr<Capture> capture;
    std::vector<size_t> capture_front;
};

struct Graph {
    struct Node {
        Work work;
        std::vector<size_t> after;
    };
    std::vector<Node> nodes;
};

struct Capture {
    Stream* origin;
    Graph graph;
    std::vector<Stream*> streams;
    bool broken = false;
};

Stream* make_stream(bool blocking);
Stream& default_stream();

// Queues work, or adds it to the graph that is being captured.
void submit(Stream& stream, Work work);
void record(Event& event, Stream& stream);
// False where the wait would tie a captured stream to work outside of its graph.
bool wait_event(Stream& stream, const Event& event);

bool reached(const Progress& progress);
void run_until(const Progress& progress);
void finish(Stream& stream);
void finish_all();

void begin_capture(Stream& stream);
// The graph, or null where the capture is broken: a fork was not joined, or something that cannot be captured was asked for.
std::unique_ptr<Graph> end_capture(Stream& stream);
bool any_capture();
// Marks all captures as broken: the caller does what a capture forbids.
void break_captures();
std::string run_graph(const Graph& graph);

// The first fault of the device. All work after it is dropped, as a CUDA context does.
const std::string& fault();

}  // namespace emu
