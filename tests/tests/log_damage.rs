//! Crash states and corruptions of the log, a bounded number of each.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

use multiraft_tests::{corruptions, crash_states};

#[test]
fn what_was_acknowledged_survives_a_cut_at_any_operation() {
    let checked = crash_states::check_many(0, 2_000, || ());
    let summary = checked.unwrap_or_else(|broken| panic!("{broken}"));
    assert_eq!(summary.states, 2_000);
    // Else nothing was tried.
    assert!(
        summary.kept_unacknowledged > 20
            && summary.lost_unacknowledged > 20
            && summary.cut_recoveries > 200
            && summary.recycled > 0,
        "{summary:?}"
    );
}

#[test]
fn no_corruption_of_a_closed_log_is_silent() {
    let checked = corruptions::check_many(0, 1_000, || ());
    let summary = checked.unwrap_or_else(|silent| panic!("{silent}"));
    assert_eq!(summary.cases(), 1_000);
    assert!(
        summary.refused > 100 && summary.unreadable > 50 && summary.harmless > 50,
        "{summary:?}"
    );
}
