//! The reference page of the command line, made from the help texts.

use std::fmt::Write;

use clap::{Command, CommandFactory};

use crate::arguments::{Arguments, EXIT_CODES};

const HEAD: &str = "# Command line\n\n\
<!-- made from the code; refresh with UNDERSTUDY_GOLDEN=write cargo test -p understudy-cli reference -->\n\n\
`understudy help COMMAND` prints the same. Spans of time are written `500ms`, `30s`, `5m`, `1h30m`, `2d`.\n\n";

fn page() -> String {
    let mut page = String::from(HEAD);
    let _ = write!(page, "```text\n{EXIT_CODES}\n```\n");
    let mut root = Arguments::command().term_width(100).after_long_help("");
    root.build();
    section(&mut page, &mut root, "understudy");
    page
}

fn section(page: &mut String, command: &mut Command, name: &str) {
    let help = command.render_long_help().to_string();
    let help: Vec<&str> = help.lines().map(str::trim_end).collect();
    let _ = write!(page, "\n## {name}\n\n```text\n{}\n```\n", help.join("\n").trim_end());
    let shown = command.get_subcommands_mut().filter(|c| !c.is_hide_set() && c.get_name() != "help");
    for below in shown {
        let name = format!("{name} {}", below.get_name());
        // What stands before every command is told once, at the top.
        *below = below.clone().mut_args(|arg| {
            let is_common = matches!(arg.get_id().as_str(), "socket" | "json" | "help");
            arg.hide(is_common)
        });
        section(page, below, &name);
    }
}

#[test]
fn the_reference_of_the_command_line_is_the_committed_one() {
    understudy_testkit::golden::assert_golden("docs/reference/cli.md", &page());
}
