//! Threads for parallel loops of a few microseconds.
//!
//! Decoding one token is some three hundred loops, each worth 10 to 100 microseconds: entering a general thread pool from
//! outside (queue, wake a worker, put the caller to sleep, wake it again) would cost as much as the work. Here the caller
//! works too, and nobody waits for a thread that has not started: a worker that wakes late finds nothing left. Between loops
//! workers spin for a short while, then sleep; a job is posted only after the lock on it is free again, for a worker that
//! finds it taken goes to sleep in the middle of the hand-over.
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

/// A stretch of a loop's tasks that one thread begins with. On a cache line of its own.
#[repr(align(64))]
struct Lane {
    next: AtomicUsize,
    end: usize,
}

/// A loop being run.
struct Job {
    /// Of a thread's number and a task's.
    task: &'static (dyn Fn(usize, usize) + Sync),
    /// One a thread.
    lanes: Vec<Lane>,
    /// Workers that hold this job.
    working: AtomicUsize,
    panicked: AtomicBool,
}

impl Job {
    /// The tasks of lane `own`, then what is left of the others.
    fn work(&self, own: usize) {
        let (before, from) = self.lanes.split_at(own);
        for lane in from.iter().chain(before) {
            loop {
                let index = lane.next.fetch_add(1, Ordering::Relaxed);
                if index >= lane.end {
                    break;
                }
                (self.task)(own, index);
            }
        }
    }
}

#[derive(Default)]
struct Board {
    job: Option<Arc<Job>>,
    closing: bool,
}

#[derive(Default)]
struct Shared {
    board: Mutex<Board>,
    /// Number of jobs posted so far: what spinning workers watch.
    posted: AtomicUsize,
    /// Workers that sleep or are about to.
    sleepers: AtomicUsize,
    wake: Condvar,
}

impl Shared {
    fn board(&self) -> MutexGuard<'_, Board> {
        self.board.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn serve(&self, thread: usize) {
        let mut seen = 0;
        loop {
            for _ in 0..SPINS {
                if self.posted.load(Ordering::Acquire) != seen {
                    break;
                }
                std::hint::spin_loop();
            }
            let mut board = self.board();
            while self.posted.load(Ordering::SeqCst) == seen && !board.closing {
                self.sleepers.fetch_add(1, Ordering::SeqCst);
                if self.posted.load(Ordering::SeqCst) == seen {
                    board = self.wake.wait(board).unwrap_or_else(PoisonError::into_inner);
                }
                self.sleepers.fetch_sub(1, Ordering::SeqCst);
            }
            if board.closing {
                return;
            }
            seen = self.posted.load(Ordering::Acquire);
            // Entering a job happens under the lock under which the caller closes it, so it is never entered too late.
            let job = board.job.clone();
            if let Some(job) = &job {
                job.working.fetch_add(1, Ordering::Relaxed);
            }
            drop(board);
            if let Some(job) = job {
                if catch_unwind(AssertUnwindSafe(|| job.work(thread))).is_err() {
                    job.panicked.store(true, Ordering::Relaxed);
                }
                job.working.fetch_sub(1, Ordering::Release);
            }
        }
    }
}

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
        let mut pool = Self { shared: Arc::default(), workers: Vec::new(), turn: Mutex::new(()) };
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
    fn run_on(&self, tasks: usize, task: &(dyn Fn(usize, usize) + Sync)) {
        if tasks <= 1 || self.workers.is_empty() {
            (0..tasks).for_each(|index| task(0, index));
            return;
        }
        let turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        #[expect(unsafe_code, reason = "a borrow is lent to threads that outlive it, as scoped threads do")]
        // SAFETY: only the lifetime changes. The reference is used in `Job::work` alone; below, nothing leaves this function
        // before the job is off the board (no worker can enter it any more) and `working` is 0 (none is inside), not even
        // a panic of the caller's own share, which is caught and resumed after the wait.
        let task = unsafe { std::mem::transmute::<&(dyn Fn(usize, usize) + Sync), &'static (dyn Fn(usize, usize) + Sync)>(task) };
        let lane = |thread| {
            let Range { start, end } = share(tasks, self.threads(), thread);
            Lane { next: AtomicUsize::new(start), end }
        };
        let job = Arc::new(Job {
            task,
            lanes: (0..self.threads()).map(lane).collect(),
            working: AtomicUsize::new(0),
            panicked: AtomicBool::new(false),
        });
        self.shared.board().job = Some(Arc::clone(&job));
        self.shared.posted.fetch_add(1, Ordering::SeqCst);
        if self.shared.sleepers.load(Ordering::SeqCst) > 0 {
            let _board = self.shared.board();
            self.shared.wake.notify_all();
        }
        let own = catch_unwind(AssertUnwindSafe(|| job.work(0)));
        self.shared.board().job = None;
        let mut turns = 0_u32;
        while job.working.load(Ordering::Acquire) > 0 {
            turns += 1;
            // A worker that was descheduled in the middle of a task needs our core more than we do.
            if turns > SPINS { thread::yield_now() } else { std::hint::spin_loop() }
        }
        drop(turn);
        if let Err(panic) = own {
            resume_unwind(panic);
        }
        if job.panicked.load(Ordering::Relaxed) {
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
        let own: Vec<Mutex<S>> = own.into_iter().map(Mutex::new).collect();
        let slots: Vec<Mutex<Option<T>>> = items.into_iter().map(|item| Mutex::new(Some(item))).collect();
        self.run_on(slots.len(), &|thread, index| {
            let item = slots[index].lock().unwrap_or_else(PoisonError::into_inner).take();
            if let Some(item) = item {
                task(&mut own[thread].lock().unwrap_or_else(PoisonError::into_inner), item);
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
        self.shared.board().closing = true;
        self.shared.wake.notify_all();
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
