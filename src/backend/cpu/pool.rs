//! Threads for parallel loops of a few microseconds.
//!
//! Decoding one token is some three hundred loops, each worth 10 to 100 microseconds: entering a general thread pool from
//! outside (queue, wake a worker, put the caller to sleep, wake it again) would cost as much as the work. Here the caller
//! works too, and nobody waits for a thread that has not started: a worker that wakes late finds nothing left. Between loops
//! workers spin for a short while, then sleep.
//!
//! What one core wrote takes another up to 300 ns to read, and a loop is handed over in a chain of such reads. So all that
//! passes between the caller and a worker is on one cache line, its [`Seat`], and what belongs to a thread is on lines of its
//! own.
//!
//! Every thread has a stretch of the tasks to begin with, claimed one by one from a counter of its own, and helps with the
//! others' afterwards: what a task has fetched ahead for its neighbour, and what the loop before left in a core's cache, is
//! there for the thread that needs it.
//!
//! Which thread runs a task is not determined; what a task computes must not depend on it.

use crate::error::{Error, Result};
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;

/// Turns of the spin loop before a worker sleeps: some 40 microseconds.
const SPINS: u32 = 1500;

/// Part `index` of `parts` parts, as equal as can be, of 0..total.
#[inline(always)]
pub(super) fn share(total: usize, parts: usize, index: usize) -> Range<usize> {
    let (base, more) = (total / parts, total % parts);
    let start = index * base + index.min(more);
    start..start + base + usize::from(index < more)
}

/// A loop's body: of a thread's number and a task's.
type Body<'a> = &'a (dyn Fn(usize, usize) + Sync);

/// One thread's part in the loops, on a cache line of its own.
#[derive(Default)]
#[repr(align(64))]
struct Seat {
    /// Number of loops posted so far: what a spinning worker watches.
    posted: AtomicUsize,
    /// The loop to be run. Entering a loop happens under this lock, under which the caller takes it away again, so it is
    /// never entered too late.
    body: Mutex<Option<Body<'static>>>,
    /// The worker is inside the loop.
    working: AtomicBool,
    panicked: AtomicBool,
    /// The stretch of tasks that the thread begins with.
    next: AtomicUsize,
    end: AtomicUsize,
}

impl Seat {
    fn body(&self) -> MutexGuard<'_, Option<Body<'static>>> {
        self.body.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct Shared {
    /// One a thread, the caller's first.
    seats: Vec<Seat>,
    closing: AtomicBool,
    /// Workers that sleep or are about to.
    sleepers: AtomicUsize,
    bed: Mutex<()>,
    wake: Condvar,
}

impl Shared {
    /// Runs the tasks of seat `own`, then what is left of the others.
    fn work(&self, own: usize, body: Body<'_>) {
        let (before, from) = self.seats.split_at(own);
        for seat in from.iter().chain(before) {
            let end = seat.end.load(Ordering::Relaxed);
            loop {
                let index = seat.next.fetch_add(1, Ordering::Relaxed);
                if index >= end {
                    break;
                }
                body(own, index);
            }
        }
    }

    /// Returns when `seat` has a loop that is not the `seen`-th, or the pool is closing.
    fn wait(&self, seat: &Seat, seen: usize) {
        let posted = || seat.posted.load(Ordering::SeqCst) != seen || self.closing.load(Ordering::SeqCst);
        for _ in 0..SPINS {
            if seat.posted.load(Ordering::Relaxed) != seen {
                return;
            }
            std::hint::spin_loop();
        }
        let mut bed = self.bed.lock().unwrap_or_else(PoisonError::into_inner);
        self.sleepers.fetch_add(1, Ordering::SeqCst);
        while !posted() {
            bed = self.wake.wait(bed).unwrap_or_else(PoisonError::into_inner);
        }
        self.sleepers.fetch_sub(1, Ordering::SeqCst);
    }

    /// Wakes who sleeps, if anybody does.
    fn wake(&self) {
        if self.sleepers.load(Ordering::SeqCst) > 0 {
            // Who counts as a sleeper and does not sleep yet holds the lock.
            drop(self.bed.lock().unwrap_or_else(PoisonError::into_inner));
            self.wake.notify_all();
        }
    }

    fn serve(&self, thread: usize) {
        let seat = &self.seats[thread];
        let mut seen = 0;
        loop {
            self.wait(seat, seen);
            if self.closing.load(Ordering::SeqCst) {
                return;
            }
            seen = seat.posted.load(Ordering::Acquire);
            let body = seat.body();
            let Some(work) = *body else { continue };
            seat.working.store(true, Ordering::Relaxed);
            drop(body);
            if catch_unwind(AssertUnwindSafe(|| self.work(thread, work))).is_err() {
                seat.panicked.store(true, Ordering::Relaxed);
            }
            seat.working.store(false, Ordering::Release);
        }
    }
}

/// What one thread alone touches in a loop.
#[repr(align(64))]
struct OwnLine<T>(T);

/// A fixed number of threads, the caller's among them.
pub(crate) struct Pool {
    shared: Arc<Shared>,
    workers: Vec<thread::JoinHandle<()>>,
    /// One loop at a time.
    turn: Mutex<()>,
}

impl Pool {
    /// `threads` counts the caller; none means as many as the machine runs at once.
    pub(crate) fn new(threads: Option<usize>) -> Result<Self> {
        let threads = match threads {
            Some(0) => return Err(Error::request("--threads must be at least 1")),
            Some(threads) => threads,
            None => thread::available_parallelism().map_or(1, usize::from),
        };
        let seats = (0..threads).map(|_| Seat::default()).collect();
        let (closing, sleepers, bed, wake) = Default::default();
        let shared = Arc::new(Shared { seats, closing, sleepers, bed, wake });
        let mut pool = Self { shared, workers: Vec::new(), turn: Mutex::new(()) };
        for index in 1..threads {
            let shared = Arc::clone(&pool.shared);
            let worker = thread::Builder::new().name(format!("prunectl-cpu-{index}")).spawn(move || shared.serve(index));
            pool.workers.push(worker.map_err(|e| Error::Device {
                problem: format!("cannot start thread {index} of {threads}: {e}"),
                help: Some("ask for fewer with --threads".into()),
            })?);
        }
        Ok(pool)
    }

    /// Threads, the caller's included.
    pub(crate) fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Calls `task` once for each index below `tasks`, and returns when all are done. Not to be called from a task.
    pub(crate) fn run(&self, tasks: usize, task: &(dyn Fn(usize) + Sync)) {
        self.run_on(tasks, &|_, index| task(index));
    }

    /// The same; `task` learns the number of the thread it runs on first, below [`Pool::threads`].
    fn run_on(&self, tasks: usize, task: Body<'_>) {
        if tasks <= 1 || self.workers.is_empty() {
            (0..tasks).for_each(|index| task(0, index));
            return;
        }
        let turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        #[expect(unsafe_code, reason = "a borrow is lent to threads that outlive it, as scoped threads do")]
        // SAFETY: only the lifetime changes. Workers get the reference from their seats alone and use it while `working` is
        // set; below, nothing leaves this function before it is off every seat (no worker can enter the loop any more) and
        // no worker is inside, not even a panic of the caller's own share, which is caught and resumed after the wait.
        let body = unsafe { std::mem::transmute::<Body<'_>, Body<'static>>(task) };
        let seats = &self.shared.seats;
        for (thread, seat) in seats.iter().enumerate() {
            let Range { start, end } = share(tasks, self.threads(), thread);
            seat.next.store(start, Ordering::Relaxed);
            seat.end.store(end, Ordering::Relaxed);
        }
        let workers = &seats[1..];
        for seat in workers {
            *seat.body() = Some(body);
            seat.posted.fetch_add(1, Ordering::SeqCst);
        }
        self.shared.wake();
        let own = catch_unwind(AssertUnwindSafe(|| self.shared.work(0, body)));
        for seat in workers {
            *seat.body() = None;
        }
        let mut panicked = false;
        for seat in workers {
            let mut turns = 0_u32;
            while seat.working.load(Ordering::Acquire) {
                turns += 1;
                // A worker that was descheduled in the middle of a task needs our core more than we do.
                if turns > SPINS { thread::yield_now() } else { std::hint::spin_loop() }
            }
            panicked |= seat.panicked.swap(false, Ordering::Relaxed);
        }
        drop(turn);
        if let Err(panic) = own {
            resume_unwind(panic);
        }
        if panicked {
            resume_unwind(Box::new("a task of a parallel loop panicked"));
        }
    }

    /// Cuts `data` into chunks of `chunk` elements and calls `task` with the index of each chunk's first element and the chunk.
    pub(crate) fn chunks<T: Send>(&self, data: &mut [T], chunk: usize, task: impl Fn(usize, &mut [T]) + Sync) {
        let chunk = chunk.max(1);
        if data.len() <= chunk {
            if !data.is_empty() {
                task(0, data);
            }
            return;
        }
        self.each(data.chunks_mut(chunk), |index, part| task(index * chunk, part));
    }

    /// Calls `task` once with each item and its index.
    pub(crate) fn each<T: Send>(&self, items: impl IntoIterator<Item = T>, task: impl Fn(usize, T) + Sync) {
        let items = items.into_iter().enumerate();
        self.each_with((0..self.threads()).map(|_| ()), items, |(), (index, item)| task(index, item));
    }

    /// Calls `task` once with each item and with what belongs to the thread it runs on; `own` has one a thread.
    pub(crate) fn each_with<T: Send, S: Send>(
        &self,
        own: impl IntoIterator<Item = S>,
        items: impl IntoIterator<Item = T>,
        task: impl Fn(&mut S, T) + Sync,
    ) {
        let own: Vec<OwnLine<Mutex<S>>> = own.into_iter().map(|own| OwnLine(Mutex::new(own))).collect();
        let slots: Vec<Mutex<Option<T>>> = items.into_iter().map(|item| Mutex::new(Some(item))).collect();
        self.run_on(slots.len(), &|thread, index| {
            let item = slots[index].lock().unwrap_or_else(PoisonError::into_inner).take();
            if let Some(item) = item {
                task(&mut own[thread].0.lock().unwrap_or_else(PoisonError::into_inner), item);
            }
        });
    }

    /// Rows a task, so that tasks are worth the hand-over (`elements` a row, some 20 000 each) but enough for balance.
    pub(crate) fn rows_per_task(&self, rows: usize, elements: usize) -> usize {
        let worthwhile = 20_000_usize.div_ceil(elements.max(1));
        worthwhile.max(rows.div_ceil(4 * self.threads())).max(1)
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.closing.store(true, Ordering::SeqCst);
        self.shared.wake();
        for worker in self.workers.drain(..) {
            // A worker's panic has been reported by the loop it happened in.
            let _ = worker.join();
        }
    }
}

impl std::fmt::Debug for Pool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Pool({} threads)", self.threads())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_task_runs_once_on_a_thread_that_owns_its_state() {
        for threads in [1, 2, 3, 5] {
            let pool = Pool::new(Some(threads)).unwrap();
            for tasks in [0, 1, 2, 3, 7, 100] {
                let runs: Vec<AtomicUsize> = (0..tasks).map(|_| AtomicUsize::new(0)).collect();
                let mut seen = vec![0; threads];
                pool.each_with(seen.iter_mut(), 0..tasks, |seen, index: usize| {
                    **seen += 1;
                    runs[index].fetch_add(1, Ordering::Relaxed);
                });
                assert!(runs.iter().all(|runs| runs.load(Ordering::Relaxed) == 1), "{tasks} tasks on {threads} threads");
                assert_eq!(seen.iter().sum::<usize>(), tasks);
            }
        }
    }

    #[test]
    fn workers_that_sleep_are_woken_and_a_panic_comes_through() {
        let pool = Pool::new(Some(3)).unwrap();
        for round in 0..20 {
            thread::sleep(std::time::Duration::from_millis(2));
            // Each task waits for another: done only if a second thread joins in.
            let met = AtomicUsize::new(0);
            pool.run(2, &|_| {
                met.fetch_add(1, Ordering::AcqRel);
                while met.load(Ordering::Acquire) < 2 {
                    thread::yield_now();
                }
            });
            let panicked = catch_unwind(AssertUnwindSafe(|| pool.run(8, &|index| assert!(index != round % 8, "on purpose"))));
            assert!(panicked.is_err(), "round {round}");
        }
    }
}
