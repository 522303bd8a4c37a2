//! Every scenario file holds, and the tool around them says what it should.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use multiraft_tests::scenario;

fn files() -> Vec<PathBuf> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("scenarios");
    let mut files: Vec<PathBuf> = std::fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    files.sort();
    files
}

#[test]
fn every_scenario_holds() {
    let files = files();
    assert!(files.len() >= 60, "{} files", files.len());
    let mut wrong: Vec<String> = Vec::new();
    for file in files {
        let text = std::fs::read_to_string(&file).unwrap();
        let name = file.file_name().unwrap().to_str().unwrap();
        for difference in scenario::check(&text).unwrap() {
            let scenario::Difference {
                line,
                expected,
                found,
            } = difference;
            wrong.push(format!("{name}:{line}: expected\n{expected}found\n{found}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn a_wrong_expectation_is_found_and_an_update_mends_it() {
    let text = "# A voter.\nadd-nodes 1 voters=(1) index=3\n----\nsomething else\n\n# More.\n\
                campaign 1\n----\n";
    let differences = scenario::check(text).unwrap();
    assert_eq!((differences.len(), differences[0].line), (2, 2));
    let updated = scenario::update(text).unwrap();
    assert!(scenario::check(&updated).unwrap().is_empty());
    assert!(updated.contains("# A voter.") && updated.contains("# More."));
}

fn raftscript(arguments: &[&str], text: &str) -> Output {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("scenario.txt");
    std::fs::write(&file, text).unwrap();
    Command::new(env!("CARGO_BIN_EXE_raftscript"))
        .args(arguments)
        .arg(&file)
        .output()
        .unwrap()
}

#[test]
fn a_projection_has_its_exact_form() {
    let text = "log-level none\n----\n\nadd-nodes 1 voters=(1) index=3\n----\nignored\n\n\
                campaign 1\n----\n\nstabilize\n----\n\npropose 1 \"foo\"\n----\n\n\
                simple\nv1 v2\n----\n\nsimple\nv1\n----\n\ncommitted cfg=(1,2) idx=(_,12)\n----\n";
    let output = raftscript(&["project"], text);
    assert_eq!(output.status.code(), Some(0));
    let follower = "n1 role=Follower term=0 vote=0 lead=0 commit=3 applied=3 first=4 last=3 \
                    cfg=\"voters=(1)\"\nlog n1\n";
    let candidate = "n1 role=Candidate term=1 vote=1 lead=0 commit=3 applied=3 first=4 last=3 \
                     cfg=\"voters=(1)\"\nlog n1\n";
    let leader = "n1 role=Leader term=1 vote=1 lead=1 commit=4 applied=4 first=4 last=4 \
                  cfg=\"voters=(1)\"\nlog n1 4:1:cbf29ce4\n";
    let expected = [
        "# 1 log-level\n",
        "# 4 add-nodes\n",
        follower,
        "# 8 campaign\n",
        candidate,
        "# 11 stabilize\n",
        leader,
        "# 14 propose\n",
        leader,
        "# 17 simple\nerr=conf_change_refused\n",
        "# 21 simple\ncfg=\"voters=(1)\" p1=Probe/0/1\n",
        "# 25 committed\ncommit=0\n",
    ];
    assert_eq!(String::from_utf8(output.stdout).unwrap(), expected.concat());
}

#[test]
fn exit_codes_tell_differences_from_broken_files() {
    let unknown = raftscript(&["project"], "campain 1\n----\n");
    assert_eq!(unknown.status.code(), Some(2));
    let broken = raftscript(&["project"], "campaign 1\n");
    assert_eq!(broken.status.code(), Some(2));
    let differs = raftscript(&["run"], "add-nodes 1\n----\nnothing\n");
    assert_eq!(differs.status.code(), Some(1));
    let refused = "add-nodes 1 voters=(1) index=3\n----\n\npropose 1 a\n----\n";
    let refused = raftscript(&["project"], refused);
    assert_eq!(refused.status.code(), Some(0), "a refusal is output");
    let text = String::from_utf8(refused.stdout).unwrap();
    assert!(
        text.contains("# 4 propose\nerr=proposal_dropped\nn1 "),
        "{text}"
    );
}
