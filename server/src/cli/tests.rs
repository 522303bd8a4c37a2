#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use clap::{CommandFactory, Parser};
use multiraft_proto::node::MemberConfig;
use multiraft_proto::node::member_config::Role;

use super::*;

fn parse(line: &str) -> Result<Cli, clap::Error> {
    Cli::try_parse_from(line.split_whitespace())
}

fn parse_client(line: &str) -> ClientCommand {
    match parse(line).unwrap().command {
        Command::Client(command) => command,
        other => panic!("no client verb: {other:?}"),
    }
}

#[test]
fn the_command_line_is_consistent() {
    Cli::command().debug_assert();
}

#[test]
fn every_verb_and_flag_is_explained_in_sentences() {
    fn check(command: &clap::Command) {
        for verb in command
            .get_subcommands()
            .filter(|verb| verb.get_name() != "help")
        {
            let about = verb.get_about().unwrap().to_string();
            assert!(!about.is_empty(), "{}", verb.get_name());
            for argument in verb.get_arguments() {
                let name = argument.get_id();
                if name != "help" && name != "version" {
                    assert!(argument.get_help().is_some(), "{} {name}", verb.get_name());
                }
            }
            check(verb);
        }
    }
    check(&Cli::command());
}

#[test]
fn members_are_read_with_and_without_a_role() {
    let line = "multiraft bootstrap --group 1 --member 1=127.0.0.1:5000 \
        --member 2=[::1]:5001:witness --member 3=h:65535:observer";
    let ClientCommand::Bootstrap(args) = parse_client(line) else {
        panic!("not bootstrap")
    };
    let member = |node_id, host: &str, port, role: Role| MemberConfig {
        node_id,
        host: host.to_owned(),
        port,
        role: role.into(),
    };
    assert_eq!(
        args.members,
        [
            member(1, "127.0.0.1", 5000, Role::Member),
            member(2, "::1", 5001, Role::Witness),
            member(3, "h", 65_535, Role::Observer),
        ]
    );
}

#[test]
fn wrong_values_are_refused_with_code_2() {
    for (line, needle) in [
        (
            "multiraft bootstrap --group 0 --member 1=h:1",
            "0 is not in 1..",
        ),
        ("multiraft bootstrap --group 1", "--member"),
        ("multiraft bootstrap --group 1 --member h:1", "ID=HOST:PORT"),
        ("multiraft bootstrap --group 1 --member 0=h:1", "no node id"),
        (
            "multiraft bootstrap --group 1 --member 1=h",
            "port is missing",
        ),
        ("multiraft bootstrap --group 1 --member 1=h:0", "1 to 65535"),
        (
            "multiraft bootstrap --group 1 --member 1=h:1:boss",
            "observer",
        ),
        (
            "multiraft bootstrap --group 1 --member 1=:1",
            "host is missing",
        ),
        ("multiraft get", "<KEY>"),
        ("multiraft get a --timeout 5", "unit"),
        ("multiraft get a --timeout 0s", "more than zero"),
        ("multiraft del a b --prefix", "cannot be used with"),
        ("multiraft range --prefix", "KEY"),
        ("multiraft dev --nodes 0", "0 is not in 1.."),
        ("multiraft log inspect", "<DIR>"),
        (
            "multiraft log repair d --quarantine 7,x",
            "\"x\" is no group",
        ),
        ("multiraft log repair d --quarantine 0", "is no group"),
    ] {
        let error = parse(line).unwrap_err();
        assert!(
            error.to_string().contains(needle),
            "{line}: `{needle}` not in {error}"
        );
        assert_eq!(error.exit_code(), 2, "{line}");
    }
}

#[test]
fn endpoints_and_timeout_are_read() {
    let line = "multiraft status --endpoint a:1,b:2 --timeout 250ms --group 3 --json";
    let ClientCommand::Status(args) = parse_client(line) else {
        panic!("not status")
    };
    assert_eq!(args.connection.endpoint, ["a:1", "b:2"]);
    assert_eq!(args.connection.timeout.as_millis(), 250);
    assert_eq!((args.groups, args.connection.json), (vec![3], true));
}

#[test]
fn json_is_the_proto3_form() {
    let member = MemberConfig {
        node_id: 1,
        host: "h".to_owned(),
        port: 2,
        role: 1,
    };
    let want = r#"{"nodeId":1,"host":"h","port":2,"role":"MEMBER"}"#;
    assert_eq!(json_line("test", &member).unwrap(), want);
}

/// Nobody listens on a port that was just given back.
#[tokio::test]
async fn a_node_that_is_not_there_is_said_with_what_to_do() {
    let port = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let line = format!("multiraft get a --endpoint 127.0.0.1:{port}");
    let failure = run_client(parse_client(&line)).await.unwrap_err();
    assert!(
        failure
            .to_string()
            .contains("(UNAVAILABLE): Connection refused"),
        "{failure}"
    );
    assert_eq!(failure.exit_code(), 1);
}
