//! A broken rule is a panic; here it becomes words.

use std::panic::{AssertUnwindSafe, catch_unwind};

/// Does the work; what it said when it panicked. What the work changed is not to be used then, but
/// to be shown.
///
/// # Errors
/// The words of the panic.
pub fn caught<T>(work: impl FnOnce() -> T) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(work)).map_err(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
        text.unwrap_or("a panic without words").to_owned()
    })
}
