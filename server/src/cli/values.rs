//! Values of flags that have a form of their own: spans of time and members.

use std::time::Duration;

use multiraft_proto::node::MemberConfig;
use multiraft_proto::node::member_config::Role;

/// A span of time such as `500ms`, `5s` or `2m`; more than zero.
pub(super) fn parse_duration(text: &str) -> Result<Duration, String> {
    let digits = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let number: u64 = number
        .parse()
        .map_err(|_| "write a whole number and a unit, as in 5s".to_owned())?;
    let duration = match unit {
        "ms" => Duration::from_millis(number),
        "s" => Duration::from_secs(number),
        "m" => Duration::from_secs(number.saturating_mul(60)),
        _ => return Err("the unit must be ms, s or m, as in 5s".to_owned()),
    };
    if duration.is_zero() {
        return Err("must be more than zero".to_owned());
    }
    Ok(duration)
}

/// A member such as `1=127.0.0.1:5000` or `2=[::1]:5000:witness`. Brackets are left out of the
/// host, as the API wants it.
pub(super) fn parse_member(text: &str) -> Result<MemberConfig, String> {
    let (id, rest) = text
        .split_once('=')
        .ok_or("write ID=HOST:PORT or ID=HOST:PORT:ROLE, as in 1=10.0.0.1:5000")?;
    let node_id = id.parse().ok().filter(|id| *id > 0);
    let node_id: u32 = node_id.ok_or_else(|| format!("`{id}` is no node id: use 1 or more"))?;
    let (address, role) = split_role(rest)?;
    let (host, port) = address.rsplit_once(':').ok_or("the port is missing")?;
    let port: u16 = port.parse().ok().filter(|port| *port > 0).ok_or_else(|| {
        format!("`{port}` is neither a port from 1 to 65535, nor one of member, observer, witness")
    })?;
    Ok(MemberConfig {
        node_id,
        host: without_brackets(host)?,
        port: port.into(),
        role: role.into(),
    })
}

/// A host with or without a port, such as `node1.example:5000`, `10.0.0.1` or `[::1]:5000`.
pub(super) fn parse_host(text: &str) -> Result<(String, Option<u16>), String> {
    // An address of version 6 has colons of its own.
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) if !host.contains(':') || host.ends_with(']') => (host, Some(port)),
        _ => (text, None),
    };
    let port = port.map(|port| {
        let number = port.parse().ok().filter(|port: &u16| *port > 0);
        number.ok_or_else(|| format!("`{port}` is no port from 1 to 65535"))
    });
    Ok((without_brackets(host)?, port.transpose()?))
}

fn without_brackets(host: &str) -> Result<String, String> {
    let inner = host.strip_prefix('[').and_then(|h| h.strip_suffix(']'));
    match inner.unwrap_or(host) {
        "" => Err("the host is missing".to_owned()),
        host => Ok(host.to_owned()),
    }
}

fn split_role(text: &str) -> Result<(&str, Role), String> {
    let (address, last) = text.rsplit_once(':').ok_or("the port is missing")?;
    Ok(match last {
        "member" => (address, Role::Member),
        "observer" => (address, Role::Observer),
        "witness" => (address, Role::Witness),
        _ => (text, Role::Member),
    })
}
