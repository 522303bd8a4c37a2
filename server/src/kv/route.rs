//! Which group a request means: metadata, else the host name it was sent to, else the default.
//!
//! tonic hands a service the headers of a request but not its `:authority`, so a small layer keeps
//! it: add [`AuthorityLayer`] to the server, or host names choose nothing.

use std::task::{Context, Poll};

use multiraft_engine::types::GroupId;
use tonic::codegen::{Service, http};
use tonic::{Request, Status};
use tower_layer::Layer;

/// The metadata that chooses a group: its id, decimal.
pub const GROUP_METADATA: &str = "multiraft-group";

/// The host name that a request was sent to, perhaps with a port; kept by [`AuthorityLayer`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Authority(pub String);

/// The group that `request` means.
///
/// Metadata `multiraft-group: 7` comes first, then a host name `g7.…`, then `default`. Metadata
/// that is no group id, or given twice, is refused, and so is a host name `g` with a number that no
/// group can have: a wrong guess would write into another group.
pub fn group_of<T>(request: &Request<T>, default: GroupId) -> Result<GroupId, Status> {
    let mut named = request.metadata().get_all(GROUP_METADATA).iter();
    if let Some(value) = named.next() {
        let group = value.to_str().ok().and_then(parse_group);
        return match (group, named.next()) {
            (Some(group), None) => Ok(group),
            (None, _) | (_, Some(_)) => Err(Status::invalid_argument(format!(
                "metadata {GROUP_METADATA} must be one group id from 1 to {}, as decimal digits",
                u32::MAX
            ))),
        };
    }
    match request.extensions().get::<Authority>() {
        Some(Authority(authority)) => group_of_authority(authority, default),
        None => Ok(default),
    }
}

fn group_of_authority(authority: &str, default: GroupId) -> Result<GroupId, Status> {
    let label = authority.split_once('.').map_or("", |(label, _)| label);
    let digits = label.strip_prefix(['g', 'G']).unwrap_or_default();
    if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return Ok(default);
    }
    parse_group(digits).ok_or_else(|| {
        Status::invalid_argument(format!(
            "host name {authority:?} names no group: ids go from 1 to {}",
            u32::MAX
        ))
    })
}

fn parse_group(digits: &str) -> Option<GroupId> {
    let only_digits = digits.bytes().all(|b| b.is_ascii_digit());
    let id = digits.parse().ok().filter(|id| only_digits && *id > 0)?;
    Some(GroupId(id))
}

/// Keeps each request's host name for [`group_of`]: `:authority` of HTTP/2, or the `host` header.
#[derive(Debug, Clone, Copy, Default)]
pub struct AuthorityLayer;

impl<S> Layer<S> for AuthorityLayer {
    type Service = KeepAuthority<S>;

    fn layer(&self, inner: S) -> Self::Service {
        KeepAuthority { inner }
    }
}

/// The service that [`AuthorityLayer`] puts around another.
#[derive(Debug, Clone)]
pub struct KeepAuthority<S> {
    inner: S,
}

impl<S, B> Service<http::Request<B>> for KeepAuthority<S>
where
    S: Service<http::Request<B>>,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, mut request: http::Request<B>) -> Self::Future {
        let header = || request.headers().get(http::header::HOST)?.to_str().ok();
        let authority = request.uri().authority().map(http::uri::Authority::as_str);
        if let Some(authority) = authority.or_else(header).map(str::to_owned) {
            request.extensions_mut().insert(Authority(authority));
        }
        self.inner.call(request)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests end at the first surprise")]
mod tests {
    use super::*;

    const DEFAULT: GroupId = GroupId(1);

    fn request(metadata: &[&str], authority: Option<&str>) -> Request<()> {
        let mut request = Request::new(());
        for value in metadata {
            let value = value.parse().unwrap();
            request.metadata_mut().append(GROUP_METADATA, value);
        }
        if let Some(authority) = authority {
            let authority = Authority(authority.to_owned());
            request.extensions_mut().insert(authority);
        }
        request
    }

    #[test]
    fn metadata_comes_before_host_name_before_default() {
        for (metadata, authority, want) in [
            (&[][..], None, 1),
            (&["7"], None, 7),
            (&["7"], Some("g8.example.com"), 7),
            (&["4294967295"], None, u32::MAX),
            (&[], Some("g8.example.com:2379"), 8),
            (&[], Some("G8.localhost"), 8),
            (&[], Some("g8"), 1), // a host of that name
            (&[], Some("gateway.example.com"), 1),
            (&[], Some("g.example.com"), 1),
            (&[], Some("127.0.0.1:8080"), 1),
            (&[], Some("[::1]:8080"), 1),
        ] {
            let group = group_of(&request(metadata, authority), DEFAULT);
            assert_eq!(group.unwrap(), GroupId(want), "{metadata:?} {authority:?}");
        }
    }

    #[test]
    fn what_names_no_group_is_refused() {
        for (metadata, authority) in [
            (&[""][..], None),
            (&["0"], None),
            (&["+7"], None),
            (&["seven"], Some("g8.example.com")),
            (&["4294967296"], None),
            (&["7", "7"], None),
            (&[], Some("g0.example.com")),
            (&[], Some("g4294967296.example.com")),
        ] {
            let status = group_of(&request(metadata, authority), DEFAULT).unwrap_err();
            let code = status.code();
            assert_eq!(
                code,
                tonic::Code::InvalidArgument,
                "{metadata:?} {authority:?}"
            );
        }
    }
}
