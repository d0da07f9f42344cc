//! What the user sees: results on stdout; notes, warnings and progress on stderr, all of it without colour.

use std::fmt::Display;
use std::io::{self, IsTerminal, Write};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;

use crate::error::{Error, Result};

/// How a verb prints.
#[derive(Debug, Clone, Copy, Default, clap::Args)]
#[command(next_help_heading = "Output")]
pub struct OutputArgs {
    /// Results as JSON
    #[arg(long)]
    json: bool,
    /// Only results, warnings and errors
    #[arg(long, short)]
    quiet: bool,
}

/// The two streams.
#[derive(Debug, Clone, Copy)]
pub struct Ui {
    /// Results as JSON.
    pub json: bool,
    quiet: bool,
}

impl Ui {
    pub fn new(args: OutputArgs) -> Self {
        Ui { json: args.json, quiet: args.quiet }
    }

    /// One line about what happens, under a short label.
    pub fn note(&self, label: &str, text: impl Display) {
        if !self.quiet {
            say(format_args!("{label:<9} {text}"));
        }
    }

    pub fn warn(&self, text: impl Display) {
        say(format_args!("warning: {text}"));
    }

    /// Progress over `total` steps, drawn in place on a terminal and not at all elsewhere.
    pub fn bar(&self, label: &str, total: usize) -> Bar {
        let able = io::stderr().is_terminal() && std::env::var_os("TERM").is_none_or(|term| term != "dumb");
        let target = if able && !self.quiet { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        let style = ProgressStyle::with_template("{prefix:<9} {bar:30} {pos}/{len}  {elapsed} of {duration}  {msg}");
        let style = style.expect("the template is a constant").progress_chars("=> ");
        Bar(ProgressBar::with_draw_target(Some(total as u64), target).with_style(style).with_prefix(label.to_owned()))
    }

    /// Text to stdout.
    ///
    /// # Errors
    /// [`Error::Io`] when it cannot be written. When nobody reads it any more, the process ends quietly instead.
    pub fn print(&self, text: impl Display) -> Result<()> {
        let mut out = io::stdout().lock();
        match write!(out, "{text}").and_then(|()| out.flush()) {
            Err(e) if e.kind() == io::ErrorKind::BrokenPipe => std::process::exit(0),
            written => written.map_err(|e| Error::io("write", "stdout", &e)),
        }
    }

    /// A value to stdout: as one line of JSON if that was asked for, else as the text.
    ///
    /// # Errors
    /// As [`Self::print`].
    pub fn result(&self, value: &impl Serialize, text: impl Display) -> Result<()> {
        if !self.json {
            return self.print(text);
        }
        self.print(format_args!("{}\n", serde_json::to_string(value).expect("results are plain data")))
    }
}

/// A line to stderr. Nobody may be listening there; that is no reason to stop.
pub fn say(line: impl Display) {
    let _ = writeln!(io::stderr(), "{line}");
}

/// A running progress; gone from the terminal when dropped.
pub struct Bar(ProgressBar);

impl Bar {
    pub fn at(&self, position: usize) {
        self.0.set_position(position as u64);
    }

    pub fn advance(&self, by: usize) {
        self.0.inc(by as u64);
    }

    pub fn message(&self, text: String) {
        self.0.set_message(text);
    }

    /// Prints above the bar.
    pub fn aside(&self, print: impl FnOnce() -> Result<()>) -> Result<()> {
        self.0.suspend(print)
    }

    /// Whether nothing is drawn, so that lines should be printed instead.
    pub fn is_hidden(&self) -> bool {
        self.0.is_hidden()
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}

/// `1 picture`, `2 pictures`.
pub fn count(n: usize, what: &str) -> String {
    format!("{n} {what}{}", if n == 1 { "" } else { "s" })
}

/// `1.5 MiB`, `2.0 GiB`.
pub fn size(bytes: usize) -> String {
    let mib = bytes as f64 / f64::from(1 << 20);
    if mib < 1024.0 { format!("{mib:.1} MiB") } else { format!("{:.1} GiB", mib / 1024.0) }
}
