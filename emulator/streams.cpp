#include "streams.h"

#include <algorithm>

#include "options.h"

namespace emu {
namespace {

std::vector<std::unique_ptr<Stream>>& streams() {
    static auto& all =
        *new std::vector<std::unique_ptr<Stream>>;  // never destroyed: programs clean up until their very end
    return all;
}

Random& random() {
    static Random generator(options().seed * 31 + 7);
    return generator;
}

std::string& first_fault() {
    static auto& text = *new std::string;
    return text;
}

bool runnable(const Stream& stream) {
    return !stream.queue.empty() &&
           std::all_of(stream.queue.front().after.begin(), stream.queue.front().after.end(), reached);
}

void run_head(Stream& stream) {
    const Stream::Item item = std::move(stream.queue.front());
    stream.queue.pop_front();
    if (first_fault().empty()) {
        first_fault() = item.work();
    }
    ++stream.finished;
}

// Runs one piece of work of any stream that has some; false where none can run.
bool run_any() {
    std::vector<Stream*> ready;
    for (const auto& stream : streams()) {
        if (runnable(*stream)) {
            ready.push_back(stream.get());
        }
    }
    if (ready.empty()) {
        return false;
    }
    run_head(*ready[random().below(ready.size())]);
    return true;
}

void add_progress(std::vector<Progress>& after, Stream& stream) {
    if (stream.issued > stream.finished) {
        after.push_back({&stream, stream.issued});
    }
}

void merge(std::vector<size_t>& into, const std::vector<size_t>& nodes) {
    for (const size_t node : nodes) {
        if (std::find(into.begin(), into.end(), node) == into.end()) {
            into.push_back(node);
        }
    }
}

void enqueue(Stream& stream, Work work, std::vector<Progress> after) {
    // The legacy default stream waits for blocking streams and they for it.
    if (&stream == &default_stream()) {
        for (const auto& other : streams()) {
            if (other->blocking && other.get() != &stream) {
                add_progress(after, *other);
            }
        }
    } else if (stream.blocking) {
        add_progress(after, default_stream());
    }
    stream.queue.push_back({std::move(work), std::move(after)});
    ++stream.issued;
    if (options().streams == Options::Streams::Eager) {
        run_until({&stream, stream.issued});
    } else if (options().streams == Options::Streams::Random && random().below(4) == 0) {
        for (size_t i = random().below(8); i > 0 && run_any(); --i) {
        }
    }
}

}  // namespace

const std::string& fault() { return first_fault(); }

Stream* make_stream(bool blocking) {
    auto stream = std::make_unique<Stream>();
    stream->blocking = blocking;
    streams().push_back(std::move(stream));
    return streams().back().get();
}

Stream& default_stream() {
    static Stream* stream = make_stream(true);
    return *stream;
}

void submit(Stream& stream, Work work) {
    if (stream.capture == nullptr) {
        enqueue(stream, std::move(work), {});
        return;
    }
    std::vector<Graph::Node>& nodes = stream.capture->graph.nodes;
    nodes.push_back({std::move(work), stream.capture_front});
    stream.capture_front = {nodes.size() - 1};
}

void record(Event& event, Stream& stream) {
    event.capture = stream.capture;
    event.capture_front = stream.capture_front;
    if (stream.capture != nullptr) {
        return;
    }
    const auto time = std::make_shared<std::chrono::steady_clock::time_point>();
    event.time = time;  // shared: the event may be destroyed before its turn comes
    event.progress = {&stream, stream.issued + 1};
    enqueue(stream,
            [time] {
                *time = std::chrono::steady_clock::now();
                return std::string();
            },
            {});
}

bool wait_event(Stream& stream, const Event& event) {
    if (event.capture != nullptr) {
        if (stream.capture == nullptr) {
            stream.capture = event.capture;
            stream.capture->streams.push_back(&stream);
            stream.capture_front.clear();
        } else if (stream.capture != event.capture) {
            return false;
        }
        merge(stream.capture_front, event.capture_front);
        return true;
    }
    if (stream.capture != nullptr) {
        return event.progress.stream == nullptr;
    }
    if (event.progress.stream != nullptr && !reached(event.progress)) {
        enqueue(stream, [] { return std::string(); }, {event.progress});
    }
    return true;
}

bool reached(const Progress& progress) {
    return progress.stream == nullptr || progress.stream->finished >= progress.number;
}

void run_until(const Progress& progress) {
    while (!reached(progress)) {
        if (options().streams == Options::Streams::Random && run_any()) {
            continue;
        }
        const std::vector<Progress> after = progress.stream->queue.front().after;
        for (const Progress& before : after) {
            run_until(before);
        }
        run_head(*progress.stream);
    }
}

void finish(Stream& stream) { run_until({&stream, stream.issued}); }

void finish_all() {
    for (size_t i = 0; i < streams().size(); ++i) {
        finish(*streams()[i]);
    }
}

// ---- Graphs

void begin_capture(Stream& stream) {
    stream.capture = std::make_shared<Capture>();
    stream.capture->origin = &stream;
    stream.capture->streams.push_back(&stream);
    stream.capture_front.clear();
}

std::unique_ptr<Graph> end_capture(Stream& stream) {
    const std::shared_ptr<Capture> capture = stream.capture;
    // Every fork has to lead back: its last nodes come before the origin's last.
    std::vector<size_t> joined = stream.capture_front;
    for (size_t i = 0; i < joined.size(); ++i) {
        merge(joined, std::vector<size_t>(capture->graph.nodes[joined[i]].after));
    }
    bool whole = !capture->broken && capture->origin == &stream;
    for (Stream* member : capture->streams) {
        for (const size_t node : member->capture_front) {
            whole = whole && std::find(joined.begin(), joined.end(), node) != joined.end();
        }
        member->capture = nullptr;
        member->capture_front.clear();
    }
    return whole ? std::make_unique<Graph>(std::move(capture->graph)) : nullptr;
}

bool any_capture() {
    return std::any_of(streams().begin(), streams().end(), [](const auto& stream) { return stream->capture != nullptr; });
}

void break_captures() {
    for (const auto& stream : streams()) {
        if (stream->capture != nullptr) {
            stream->capture->broken = true;
        }
    }
}

std::string run_graph(const Graph& graph) {
    std::vector<bool> done(graph.nodes.size());
    std::vector<size_t> left(graph.nodes.size());
    for (size_t i = 0; i < left.size(); ++i) {
        left[i] = i;
    }
    while (!left.empty()) {
        std::vector<size_t> ready;
        for (size_t i = 0; i < left.size(); ++i) {
            const std::vector<size_t>& after = graph.nodes[left[i]].after;
            if (std::all_of(after.begin(), after.end(), [&](size_t node) { return done[node]; })) {
                ready.push_back(i);
            }
            if (!options().shuffled && !ready.empty()) {
                break;
            }
        }
        const size_t chosen = ready[random().below(ready.size())];
        if (std::string problem = graph.nodes[left[chosen]].work(); !problem.empty()) {
            return problem;
        }
        done[left[chosen]] = true;
        left.erase(left.begin() + static_cast<std::ptrdiff_t>(chosen));
    }
    return {};
}

}  // namespace emu
