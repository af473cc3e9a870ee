//! Regular expressions of values, in the dialect that RE2 and this crate's tests share.

/// One number of an IPv4 address.
const OCTET: &str = "(25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])";
/// Four hexadecimal digits of an IPv6 address.
const GROUP: &str = "[0-9a-fA-F]{1,4}";

/// 1 to 65535, in digits alone.
pub(super) const PORT: &str =
    "^([1-9][0-9]{0,3}|[1-5][0-9]{4}|6[0-4][0-9]{3}|65[0-4][0-9]{2}|655[0-2][0-9]|6553[0-5])$";
/// `5`, not `6`: the longest port has five digits.
pub(super) const PORT_LENGTH: u64 = 5;

/// A namespace, or its beginning or end with `*`, or `*` alone.
pub(super) const NAMESPACE: &str = r"^([a-z0-9-]+\*?|\*[a-z0-9-]*)$";
/// A namespace has 63 characters (RFC 1123), and there may be a `*`.
pub(super) const NAMESPACE_LENGTH: u64 = 64;

/// An identity, or its beginning or end with `*`, or `*` alone.
pub(super) const PRINCIPAL: &str = r"^(spiffe://)?([A-Za-z0-9._/-]+\*?|\*[A-Za-z0-9._/-]*)$";
/// `spiffe://`, a trust domain of 255, `/ns/` and 63, `/sa/` and 253, and a `*`.
pub(super) const PRINCIPAL_LENGTH: u64 = 589;

/// `<namespace>/<account>` or `<account>`.
pub(super) const SERVICE_ACCOUNT: &str = "^([a-z0-9-]+/)?[a-z0-9.-]+$";
/// 63, a slash, and 253.
pub(super) const SERVICE_ACCOUNT_LENGTH: u64 = 317;

/// The longest IPv6 address with a prefix length.
pub(super) const CIDR_LENGTH: u64 = 43;

/// What conditions may be about: what L4 decides, and what Istio knows besides.
pub(super) const KEY: &str = r"^(source\.(ip|namespace|principal|serviceAccount)|destination\.(ip|port)|remote\.ip|connection\.sni|(request|experimental)\..+)$";
/// `request.headers[...]` may name a header; nobody's is longer.
pub(super) const KEY_LENGTH: u64 = 256;

/// A label's value (`metadata.labels`).
pub(super) const LABEL_VALUE: &str = "^(([A-Za-z0-9][A-Za-z0-9_.-]*)?[A-Za-z0-9])?$";
/// As Kubernetes bounds it.
pub(super) const LABEL_VALUE_LENGTH: u64 = 63;

/// An address, or a block of them. IPv4 within IPv6 is left out: whoever means IPv4 writes it.
pub(super) fn cidr() -> String {
    let v4 = format!(r"({OCTET}\.){{3}}{OCTET}(/(3[0-2]|[12]?[0-9]))?");
    let mut forms = vec![format!("({GROUP}:){{7}}{GROUP}"), format!("({GROUP}:){{1,7}}:")];
    // `::` stands for one group or more, so at most seven are written, some of them on its right.
    forms.extend((1..=6).map(|right| format!("({GROUP}:){{1,{}}}(:{GROUP}){{1,{right}}}", 7 - right)));
    forms.push(format!(":((:{GROUP}){{1,7}}|:)"));
    let v6 = forms.join("|");
    format!("^({v4}|({v6})(/(12[0-8]|1[01][0-9]|[1-9]?[0-9]))?)$")
}
