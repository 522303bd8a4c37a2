//! The verb `watch`: a node's events, or those that are asked for.

use std::time::SystemTime;

use clap::Args;
use clap::builder::PossibleValuesParser;
use multiraft_proto::node::{Event, WatchRequest};
use prost_types::Timestamp;
use tonic::Request;

use super::Failure;
use super::client::Client;
use super::client_args::ConnectionArgs;
use super::event_line::{KINDS, coloured_line, describe};
use super::output::{json_line, print_line};
use super::values::parse_duration;

/// The arguments of `multiraft watch`.
#[derive(Debug, Clone, Args)]
#[command(
    after_help = "First come the present groups and connections, each with the time when it became \
    so, then what happens. Events of connections belong to no group: with --group they are left out \
    unless --kind names them.\n\n\
    Examples:\n  multiraft watch\n  multiraft watch --group 7 --kind LeaderUpdated,MembershipChanged\n  \
    multiraft watch --since 10m\n  multiraft watch --json | jq .leaderUpdated"
)]
pub struct WatchArgs {
    /// Only events of these groups.
    #[arg(long = "group", value_name = "GROUP", value_delimiter = ',',
        value_parser = clap::value_parser!(u32).range(1..))]
    pub groups: Vec<u32>,
    /// Only events of these kinds.
    #[arg(long = "kind", value_name = "KIND", value_delimiter = ',', ignore_case = true,
        value_parser = PossibleValuesParser::new(KINDS))]
    pub kinds: Vec<String>,
    /// Only what happened since then: a time as in 2026-01-31T08:00:00Z, or a span before now such as
    /// 10m. The node keeps no history: what was earlier is told only if it is still so.
    #[arg(long, value_name = "TIME", value_parser = parse_since)]
    pub since: Option<Timestamp>,
    /// How to reach the node.
    #[command(flatten)]
    pub connection: ConnectionArgs,
}

impl WatchArgs {
    fn wants(&self, event: &Event) -> bool {
        let text = describe(event);
        let is_kind = |kind: &String| kind.eq_ignore_ascii_case(text.kind);
        let is_named = self.kinds.iter().any(is_kind);
        let is_in_group = match text.group() {
            Some(of) => self.groups.iter().any(|group| group.to_string() == of),
            None => is_named,
        };
        let is_recent = |since: &Timestamp| {
            let at = event.timestamp.unwrap_or_default();
            (at.seconds, at.nanos) >= (since.seconds, since.nanos)
        };
        (self.kinds.is_empty() || is_named)
            && (self.groups.is_empty() || is_in_group)
            && self.since.as_ref().is_none_or(is_recent)
    }
}

/// A time, or a span before now.
fn parse_since(text: &str) -> Result<Timestamp, String> {
    if let Ok(time) = text.parse() {
        return Ok(time);
    }
    let wrong = "write a time as in 2026-01-31T08:00:00Z, or a span as in 10m";
    let span = parse_duration(text).map_err(|_| wrong.to_owned())?;
    let time = SystemTime::now().checked_sub(span).ok_or(wrong)?;
    Ok(time.into())
}

/// Prints events until the node ends the stream; the timeout is only for its beginning.
pub(super) async fn watch(args: WatchArgs) -> Result<(), Failure> {
    let client = Client::connect_any(&args.connection).await?;
    let mut node = client.node();
    let mut events = client
        .answer("watch", node.watch(Request::new(WatchRequest {})))
        .await?;
    while let Some(event) = events
        .message()
        .await
        .map_err(|status| client.failure("watch", status))?
    {
        if !args.wants(&event) {
            continue;
        }
        if args.connection.json {
            print_line(&json_line("watch", &event)?)?;
        } else {
            print_line(&coloured_line(&event, None))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use multiraft_proto::node::event::Event as Kind;
    use multiraft_proto::node::{ConnectionFailedEvent, LeaderUpdatedEvent, LogCompactedEvent};

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        watch: WatchArgs,
    }

    fn watch(line: &str) -> Result<WatchArgs, clap::Error> {
        let words = std::iter::once("watch").chain(line.split_whitespace());
        Line::try_parse_from(words).map(|line| line.watch)
    }

    fn event(seconds: i64, kind: Kind) -> Event {
        Event {
            timestamp: Some(Timestamp { seconds, nanos: 5 }),
            event: Some(kind),
        }
    }

    #[test]
    fn only_what_is_asked_for_is_wanted() {
        let leader = |group_id| {
            Kind::LeaderUpdated(LeaderUpdatedEvent {
                group_id,
                ..LeaderUpdatedEvent::default()
            })
        };
        let events = [
            event(10, leader(1)),
            event(20, leader(7)),
            event(
                30,
                Kind::LogCompacted(LogCompactedEvent {
                    group_id: 7,
                    index: 3,
                }),
            ),
            event(40, Kind::ConnectionFailed(ConnectionFailedEvent::default())),
        ];
        for (line, expected) in [
            ("", &[0, 1, 2, 3][..]),
            ("--group 7", &[1, 2]),
            ("--group 1,7 --kind leaderupdated", &[0, 1]),
            ("--group 1 --kind ConnectionFailed,LogCompacted", &[3]),
            ("--since 1970-01-01T00:00:30.000000005Z", &[2, 3]),
            ("--since 1970-01-01T00:00:30.000000006Z", &[3]),
            ("--since 10m", &[]),
        ] {
            let args = watch(line).expect("it is well-formed");
            let wanted = (0..4).filter(|&at| args.wants(&events[at]));
            assert_eq!(wanted.collect::<Vec<_>>(), expected, "{line}");
        }
    }

    #[test]
    fn what_cannot_be_asked_for_is_named() {
        for (line, needle) in [
            ("--kind Leader", "LogDBCompacted"),
            ("--group 0", "0 is not in"),
            ("--since yesterday", "2026-01-31T08:00:00Z"),
        ] {
            let Err(error) = watch(line) else {
                panic!("{line}")
            };
            assert!(error.to_string().contains(needle), "{line}: {error}");
        }
    }
}
