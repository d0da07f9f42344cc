//! Ctrl-C: the first asks the training loop to save and stop, the second ends the process at once.

use std::sync::atomic::{AtomicUsize, Ordering};

use super::ui::say;
use crate::error::{Error, Result};

static PRESSED: AtomicUsize = AtomicUsize::new(0);

/// Takes over Ctrl-C.
///
/// # Errors
/// [`Error::Config`] when the system refuses.
pub fn watch() -> Result<()> {
    let pressed = || {
        if PRESSED.fetch_add(1, Ordering::Relaxed) > 0 {
            // Files are written whole or not at all, so there is nothing to clean up.
            std::process::exit(130);
        }
        say("stopping as soon as all is saved; press Ctrl-C again to stop at once");
    };
    ctrlc::set_handler(pressed)
        .map_err(|e| Error::config(format!("Ctrl-C cannot be watched: {e}"), "run the program outside of a debugger"))
}

/// Whether Ctrl-C was pressed.
pub fn requested() -> bool {
    PRESSED.load(Ordering::Relaxed) > 0
}
