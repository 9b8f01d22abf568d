//! Threads for parallel loops of a few microseconds.
//!
//! Decoding one token is some three hundred loops, each worth 10 to 100 microseconds: entering a general thread pool from
//! outside (queue, wake a worker, put the caller to sleep, wake it again) would cost as much as the work. Here the caller
//! works too, tasks are claimed one by one from a counter, and nobody waits for a thread that has not started: a worker
//! that wakes late finds nothing left. Between loops workers spin for a short while, then sleep.
//!
//! Which thread runs a task is not determined; what a task computes must not depend on it.

use crate::error::{Error, Result};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;

/// Turns of the spin loop before a worker sleeps: some 50 microseconds.
const SPINS: u32 = 1500;

/// A loop being run.
struct Job {
    task: &'static (dyn Fn(usize) + Sync),
    tasks: usize,
    next: AtomicUsize,
    /// Workers that hold this job.
    working: AtomicUsize,
    panicked: AtomicBool,
}

impl Job {
    fn work(&self) {
        loop {
            let index = self.next.fetch_add(1, Ordering::Relaxed);
            if index >= self.tasks {
                return;
            }
            (self.task)(index);
        }
    }
}

#[derive(Default)]
struct Board {
    job: Option<Arc<Job>>,
    closing: bool,
    sleepers: usize,
}

#[derive(Default)]
struct Shared {
    board: Mutex<Board>,
    /// Number of jobs posted so far: what spinning workers watch.
    posted: AtomicUsize,
    wake: Condvar,
}

impl Shared {
    fn board(&self) -> MutexGuard<'_, Board> {
        self.board.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn serve(&self) {
        let mut seen = 0;
        loop {
            for _ in 0..SPINS {
                if self.posted.load(Ordering::Acquire) != seen {
                    break;
                }
                std::hint::spin_loop();
            }
            let mut board = self.board();
            while self.posted.load(Ordering::Acquire) == seen && !board.closing {
                board.sleepers += 1;
                board = self.wake.wait(board).unwrap_or_else(PoisonError::into_inner);
                board.sleepers -= 1;
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
                if catch_unwind(AssertUnwindSafe(|| job.work())).is_err() {
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
            let worker = thread::Builder::new().name(format!("prunectl-cpu-{index}")).spawn(move || shared.serve());
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
        if tasks <= 1 || self.workers.is_empty() {
            (0..tasks).for_each(task);
            return;
        }
        let turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        #[expect(unsafe_code, reason = "a borrow is lent to threads that outlive it, as scoped threads do")]
        // SAFETY: only the lifetime changes. The reference is used in `Job::work` alone; below, nothing leaves this function
        // before the job is off the board (no worker can enter it any more) and `working` is 0 (none is inside), not even
        // a panic of the caller's own share, which is caught and resumed after the wait.
        let task = unsafe { std::mem::transmute::<&(dyn Fn(usize) + Sync), &'static (dyn Fn(usize) + Sync)>(task) };
        let job = Arc::new(Job {
            task,
            tasks,
            next: AtomicUsize::new(0),
            working: AtomicUsize::new(0),
            panicked: AtomicBool::new(false),
        });
        let mut board = self.shared.board();
        board.job = Some(Arc::clone(&job));
        self.shared.posted.fetch_add(1, Ordering::Release);
        if board.sleepers > 0 {
            self.shared.wake.notify_all();
        }
        drop(board);
        let own = catch_unwind(AssertUnwindSafe(|| job.work()));
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
        let slots: Vec<Mutex<Option<T>>> = items.into_iter().map(|item| Mutex::new(Some(item))).collect();
        self.run(slots.len(), &|index| {
            let item = slots[index].lock().unwrap_or_else(PoisonError::into_inner).take();
            if let Some(item) = item {
                task(index, item);
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
