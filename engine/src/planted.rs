//! Bugs that are built in on purpose, to show that the tests would find them: a check that has never
//! failed proves nothing. Only the feature `planted` compiles them in, and then one of them is chosen
//! when the process starts.

/// Whether a bug is planted: never, in a build without the feature.
#[cfg(not(feature = "planted"))]
#[macro_export]
macro_rules! planted {
    ($bug:literal) => {
        false
    };
}

/// Whether a bug is planted.
#[cfg(feature = "planted")]
#[macro_export]
macro_rules! planted {
    ($bug:literal) => {
        $crate::planted::is($bug)
    };
}

/// The bug of this process, by its name in `MULTIRAFT_PLANTED`.
#[cfg(feature = "planted")]
pub fn is(bug: &str) -> bool {
    static CHOSEN: std::sync::LazyLock<Option<String>> =
        std::sync::LazyLock::new(|| std::env::var("MULTIRAFT_PLANTED").ok());
    CHOSEN.as_deref() == Some(bug)
}
