//! The signal by itself, with real threads.

use crate::waiting::{DurableSignal, Fenced};

#[test]
fn each_batch_wakes_its_own() {
    for first in [0, (1 << 31) - 2, u64::from(u32::MAX) - 1] {
        let signal = DurableSignal::new(first);
        assert_eq!(signal.wait(first), Ok(()));
        std::thread::scope(|scope| {
            let waiters = (1..=4).map(|n| {
                let signal = &signal;
                scope.spawn(move || signal.wait(first + n))
            });
            let waiters: Vec<_> = waiters.collect();
            for n in 1..=3 {
                signal.advance(first + n);
            }
            signal.fence();
            let results = waiters.into_iter().map(|w| w.join().expect("no panic"));
            let results: Vec<_> = results.collect();
            assert_eq!(results, [Ok(()), Ok(()), Ok(()), Err(Fenced)]);
        });
        assert_eq!(signal.wait(first + 3), Ok(()), "it was durable before");
    }
}
