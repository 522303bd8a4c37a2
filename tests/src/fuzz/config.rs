//! The configuration file.

use std::sync::OnceLock;

use clap::Parser;
use multiraft_server::cli::ServeArgs;
use multiraft_server::config::Config;

#[derive(Parser)]
struct Line {
    #[command(flatten)]
    serve: ServeArgs,
}

/// A configuration file, as JSON and as TOML: taken and valid, or refused with words that name it.
pub fn config_file(data: &[u8]) {
    static DIR: OnceLock<tempfile::TempDir> = OnceLock::new();
    let dir = DIR.get_or_init(|| tempfile::tempdir().unwrap());
    for name in ["config.json", "config.toml"] {
        let path = dir.path().join(name);
        std::fs::write(&path, data).unwrap();
        let path = path.to_str().unwrap();
        let line = Line::try_parse_from(["serve", "--node", "1", "--config", path]);
        match Config::load(&line.unwrap().serve) {
            Ok(config) => config.validate().unwrap(),
            Err(error) => assert!(!error.to_string().is_empty()),
        }
    }
}
