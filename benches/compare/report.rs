//! The tables as Markdown for people and as JSON for programs.

use std::fmt::Write as _;

use serde_json::{Value, json};

use super::machine::Machine;
use super::table::{ADIT, Row, Section};

/// The page `docs/performance.md`.
pub(crate) fn markdown(machine: &Machine, command: &str, sections: &[Section]) -> String {
    let mut text = format!(
        "# Performance\n\n<!-- Written by the command below; do not edit. -->\n\n```\n{command}\n```\n\n\
         Median of interleaved runs (lowest–highest in brackets) of adit and of every peer found on the machine, over the \
         same origin and with the same client. Everything of a row shares the machine's cores: CPU-seconds, which are \
         those of the subject alone, compare better than rates. What was tried to get here, and what stands in the way \
         where a target is missed: [speed.md](speed.md).\n\n"
    );
    let _ = writeln!(text, "{}\n", machine.markdown());
    for section in sections {
        let _ = writeln!(text, "{}", self::section(section));
    }
    text
}

/// The page with one section in place of what it said there before.
pub(crate) fn replace(page: &str, section: &Section) -> String {
    let text = format!("{}\n", self::section(section));
    let Some(begin) = page.find(&format!("## {}\n", section.name)) else { return format!("{page}{text}") };
    let end = page[begin + 3..].find("\n## ").map_or(page.len(), |next| begin + 3 + next + 1);
    format!("{}{text}{}", &page[..begin], &page[end..])
}

/// The same in JSON.
pub(crate) fn replace_json(all: &mut Value, section: &Section) {
    let Some(sections) = all["sections"].as_array_mut() else { return };
    sections.retain(|other| other["name"] != section.name);
    sections.push(section_json(section));
}

/// One section's tables.
pub(crate) fn section(section: &Section) -> String {
    let figures = section.figures();
    let mut text = format!("## {}\n\n{}\n\n| workload | |", section.name, section.about);
    for figure in &figures {
        let _ = write!(text, " {} |", figure.name());
    }
    let some_failed = section.rows.iter().any(|row| row.failed > 0);
    text.push_str(if some_failed { " failed runs |" } else { "" });
    let _ = write!(text, "\n|---|---|{}\n", "---:|".repeat(figures.len() + usize::from(some_failed)));
    for workload in section.workloads() {
        for row in section.rows.iter().filter(|row| row.workload == workload) {
            let _ = write!(text, "| {workload} | {} |", row.subject);
            for figure in &figures {
                let value = row.spread(*figure).map(|spread| {
                    let [low, median, high] =
                        [spread.low, spread.median, spread.high].map(|value| figure.text(value));
                    if low == high { median } else { format!("{median} ({low}–{high})") }
                });
                let _ = write!(text, " {} |", value.unwrap_or_else(|| "–".to_owned()));
            }
            if some_failed {
                let _ = write!(text, " {} of {} |", row.failed, row.failed + row.samples.len());
            }
            text.push('\n');
        }
    }
    let outcomes = section.outcomes();
    if !outcomes.is_empty() {
        text.push_str("\n| asked of adit | | measured | |\n|---|---|---:|---|\n");
    }
    for (target, outcome) in outcomes {
        let of = if target.subject == ADIT { String::new() } else { format!(", {}", target.subject) };
        let workload = format!("{}{of}", target.workload);
        let _ = match outcome {
            Some(outcome) => {
                let word = if outcome.reached { "reached" } else { "**missed**" };
                writeln!(text, "| {workload} | {} | {} | {word} |", outcome.asked, outcome.measured)
            }
            None => writeln!(text, "| {workload} | {} | – | no peer |", target.figure.name()),
        };
    }
    if !section.absent.is_empty() {
        let absent: Vec<String> =
            section.absent.iter().map(|(peer, reason)| format!("{peer} ({reason})")).collect();
        let _ = writeln!(text, "\nAbsent: {}.", absent.join(", "));
    }
    text
}

/// All samples.
pub(crate) fn json(machine: &Machine, command: &str, sections: &[Section]) -> Value {
    json!({
        "command": command,
        "machine": machine.json(),
        "sections": sections.iter().map(section_json).collect::<Vec<_>>(),
    })
}

fn section_json(section: &Section) -> Value {
    let row = |row: &Row| json!({ "workload": row.workload, "subject": row.subject, "runs": row.samples.len(), "failed_runs": row.failed, "values": row.by_figure() });
    let outcomes = section.outcomes().into_iter().filter_map(|(target, outcome)| {
        let outcome = outcome?;
        Some(json!({
            "workload": target.workload, "asked": outcome.asked, "measured": outcome.measured, "reached": outcome.reached,
        }))
    });
    json!({
        "name": section.name,
        "rows": section.rows.iter().map(row).collect::<Vec<_>>(),
        "targets": outcomes.collect::<Vec<_>>(),
        "absent": section.absent.iter().map(|(peer, reason)| json!({ "peer": peer, "reason": reason })).collect::<Vec<_>>(),
    })
}
