//! How long a process stands still during a frozen scan: the longest time that its own clock jumps.

use crate::{Held, run};
use std::io::{BufRead, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

const TERMINALS: usize = 10;
const ROUNDS: usize = 15;

/// The argument of the program that looks at its clock.
pub(crate) const WATCH: &str = "--watch-clock";

/// Opens ten pseudoterminals, and prints the process id. For each line of stdin it prints the longest
/// time between two looks at the clock, in microseconds, since the line before.
pub(crate) fn watch() -> ! {
    static LONGEST: AtomicU64 = AtomicU64::new(0);
    let open = || nix::pty::openpty(None, None).expect("a pseudoterminal");
    let _terminals: Vec<nix::pty::OpenptyResult> = (0..TERMINALS).map(|_| open()).collect();
    println!("{}", std::process::id());
    std::thread::spawn(|| {
        for _ in std::io::stdin().lock().lines() {
            println!("{}", LONGEST.swap(0, Ordering::Relaxed));
            std::io::stdout().flush().expect("written");
        }
        std::process::exit(0);
    });
    let mut last = Instant::now();
    loop {
        let now = Instant::now();
        LONGEST.fetch_max((now - last).as_micros() as u64, Ordering::Relaxed);
        last = now;
    }
}

/// Prints how long the process stands still, beside a process with 19,000 descriptors.
pub(crate) fn measure(scan: &str, file: &str, beside: &str) {
    let own = std::env::current_exe().expect("this program");
    let held = Held::start(&[own.to_str().expect("UTF-8"), WATCH]);
    let mut held = held.expect("a process that looks at its clock");
    let pid = held.pid.clone();
    let mut during = |act: &dyn Fn()| {
        held.ask();
        act();
        held.ask()
    };
    let median = |mut times: Vec<u64>| {
        times.sort_unstable();
        times[times.len() / 2] as f64 / 1e3
    };
    let (mut still, mut alone) = (Vec::new(), Vec::new());
    for round in 0..=ROUNDS {
        let scanned = during(&|| {
            run(&[scan, "--freeze", "--data", "-o", file, &pid]);
        });
        let idle = during(&|| std::thread::sleep(Duration::from_millis(50)));
        if round > 0 {
            still.push(scanned);
            alone.push(idle);
        }
    }
    println!(
        "{:<34} {:8.2} ms the process stands still ({:.2} ms idle), with 10 terminals, beside {beside}",
        "fdscan --freeze --data",
        median(still),
        median(alone)
    );
}
