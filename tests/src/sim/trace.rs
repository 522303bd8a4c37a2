//! What happened, for people: a line an event, or a page with a column for each node.

use std::collections::VecDeque;
use std::fmt::Write;

use multiraft_engine::types::NodeId;

/// No more events than this are kept; the end is what matters.
const LIMIT: usize = 100_000;

/// An event at a node, or at all of them.
#[derive(Debug, Clone)]
struct Event {
    tick: u64,
    node: Option<NodeId>,
    kind: Kind,
    text: String,
}

/// What an event is about; the page colours by it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Leaders and terms.
    Election,
    /// The log grows.
    Append,
    /// Entries are applied.
    Commit,
    /// Snapshots are made, sent and taken over.
    Snapshot,
    /// Something breaks or heals.
    Fault,
    /// Clients ask and are answered.
    Client,
}

/// The last events of a run; empty unless it was asked for.
#[derive(Debug, Clone, Default)]
pub struct Trace {
    is_on: bool,
    events: VecDeque<Event>,
}

impl Trace {
    /// One that keeps events, or none.
    pub fn new(is_on: bool) -> Self {
        Self {
            is_on,
            events: VecDeque::new(),
        }
    }

    /// Notes an event; the text is made only if somebody will read it.
    pub fn note(
        &mut self,
        tick: u64,
        node: Option<NodeId>,
        kind: Kind,
        text: impl FnOnce() -> String,
    ) {
        if !self.is_on {
            return;
        }
        if self.events.len() == LIMIT {
            self.events.pop_front();
        }
        let text = text();
        self.events.push_back(Event {
            tick,
            node,
            kind,
            text,
        });
    }

    /// A line an event.
    pub fn text(&self) -> String {
        let mut out = String::new();
        for event in &self.events {
            let node = event.node.map_or("all".to_owned(), |id| format!("n{id}"));
            let Event {
                tick, kind, text, ..
            } = event;
            writeln!(out, "{tick:>6} {node:>4} {kind:?}: {text}").expect("into a string");
        }
        out
    }

    /// One self-contained page: time goes down, a column for each node.
    pub fn html(&self, title: &str, nodes: u32) -> String {
        let mut out = format!(
            "<!doctype html><meta charset=utf-8><title>{0}</title><style>{STYLE}</style>\
             <h1>{0}</h1><table><thead><tr><th>tick",
            escape(title)
        );
        for node in 1..=nodes {
            write!(out, "<th>node {node}").expect("into a string");
        }
        out.push_str("</thead><tbody>");
        let mut events = self.events.iter().peekable();
        while let Some(first) = events.peek() {
            let tick = first.tick;
            let mut cells = vec![String::new(); nodes as usize];
            while let Some(event) = events.next_if(|e| e.tick == tick) {
                let Event { kind, text, .. } = event;
                let line = format!("<p class={kind:?}>{}", escape(text));
                match event
                    .node
                    .and_then(|id| cells.get_mut(id.get() as usize - 1))
                {
                    Some(cell) => cell.push_str(&line),
                    None => cells.iter_mut().for_each(|cell| cell.push_str(&line)),
                }
            }
            write!(out, "<tr><td>{tick}<td>{}", cells.join("<td>")).expect("into a string");
        }
        out.push_str("</table>");
        out
    }
}

const STYLE: &str = "body{font:13px monospace}table{border-collapse:collapse}\
    td,th{border:1px solid #ccc;vertical-align:top;padding:2px 6px;text-align:left}\
    thead{position:sticky;top:0;background:#fff}p{margin:0}.Election{color:#06c}\
    .Append{color:#777}.Commit{color:#080}.Fault{color:#c00;font-weight:bold}.Client{color:#a60}.Snapshot{color:#609}";

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;")
}
