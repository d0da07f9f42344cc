//! `grad completions` and `grad man`: what shells and manuals know of the program, written from its own definition.

use std::path::PathBuf;

use clap::Command;
use clap_complete::Shell;

use super::ui::{OutputArgs, Ui};
use crate::atomic::write_atomic;
use crate::error::{Error, Result};

const SHELLS: &str = "\
Examples:
  grad completions bash > ~/.local/share/bash-completion/completions/grad
  grad completions zsh > ~/.zfunc/_grad
  grad completions fish > ~/.config/fish/completions/grad.fish";

/// Print what a shell needs to complete commands
#[derive(clap::Args)]
#[command(after_help = SHELLS)]
pub struct CompletionsArgs {
    /// Which shell
    #[arg(value_name = "SHELL", value_enum)]
    shell: Shell,
}

pub fn completions(args: CompletionsArgs, mut command: Command) -> Result<()> {
    let mut text = vec![];
    clap_complete::generate(args.shell, &mut command, "grad", &mut text);
    Ui::new(OutputArgs::default()).print(String::from_utf8_lossy(&text))
}

const PAGES: &str = "\
Examples:
  grad man | man -l -
  grad man --out ~/.local/share/man/man1";

/// Print the manual page, or write one for each verb
#[derive(clap::Args)]
#[command(after_help = PAGES)]
pub struct ManArgs {
    /// Folder for the pages of all verbs
    #[arg(long, value_name = "DIR", help_heading = "Output")]
    out: Option<PathBuf>,
}

pub fn man(args: ManArgs, mut command: Command) -> Result<()> {
    command.build();
    let page = |command: &Command| {
        let mut text = vec![];
        clap_mangen::Man::new(command.clone()).render(&mut text).expect("a vector takes everything");
        text
    };
    let Some(folder) = args.out else {
        return Ui::new(OutputArgs::default()).print(String::from_utf8_lossy(&page(&command)));
    };
    std::fs::create_dir_all(&folder).map_err(|e| Error::io("create", &folder, &e))?;
    let write = |name: String, command: &Command| {
        let text = page(command);
        write_atomic(folder.join(name), |file| std::io::Write::write_all(file, &text))
    };
    write("grad.1".into(), &command)?;
    let verbs = command.get_subcommands().filter(|verb| verb.get_name() != "help");
    verbs.into_iter().try_for_each(|verb| write(format!("grad-{}.1", verb.get_name()), verb))
}
