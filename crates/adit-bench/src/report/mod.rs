//! Tells a run: lines while it goes on and a summary, or one JSON document.

mod json;
mod text;

use std::time::Duration;

use crate::error::BenchError;
use crate::outcome::{Head, Interval, Outcome};
use crate::print;

/// Where a run is told.
#[derive(Debug)]
pub(crate) struct Reporter {
    is_json: bool,
    lines: bool,
    head: Option<Head>,
}

impl Reporter {
    pub(crate) fn new(is_json: bool, interval: Option<Duration>) -> Self {
        Self { is_json, lines: !is_json && interval.is_some(), head: None }
    }

    /// All streams are connected.
    pub(crate) fn begin(&mut self, head: &Head) {
        if !self.is_json {
            print(&text::head(head, self.lines));
        }
        self.head = Some(head.clone());
    }

    /// An interval is over.
    pub(crate) fn interval(&self, interval: &Interval) {
        if let (true, Some(head)) = (self.lines, &self.head) {
            print(&text::interval(head, interval));
        }
    }

    /// The run is over; `missed` are the thresholds that it does not reach.
    pub(crate) fn end(&self, outcome: &Outcome, missed: &[String], title: Option<&str>) {
        if self.is_json {
            print(&format!("{:#}\n", json::document(outcome, missed, title)));
        } else {
            print(&text::summary(outcome, missed));
        }
    }

    /// No run, told as JSON, as iperf3 does.
    pub(crate) fn failure(&self, error: &BenchError, title: Option<&str>) {
        print(&format!("{:#}\n", json::failure(self.head.as_ref(), &error.to_string(), title)));
    }
}
