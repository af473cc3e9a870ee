//! Certificates and revocation lists as peers look at them: by rustls' webpki.

use std::time::Duration;

use jiff::Timestamp;
use rustls_pki_types::{CertificateDer, CertificateRevocationListDer, UnixTime};
use webpki::{
    ALL_VERIFICATION_ALGS, BorrowedCertRevocationList, CertRevocationList, EndEntityCert, ExpirationPolicy,
    KeyUsage, RevocationOptionsBuilder, anchor_from_trusted_cert,
};

/// Whether a peer accepts a chain, leaf first, for both usages. With lists, the leaf must be known to one of them and
/// not be revoked.
pub(crate) fn verify(
    chain: &[CertificateDer<'_>],
    roots: &[CertificateDer<'_>],
    lists: &[CertificateRevocationListDer<'static>],
    now: Timestamp,
) -> Result<(), webpki::Error> {
    let anchors: Vec<_> = roots
        .iter()
        .map(|root| anchor_from_trusted_cert(root).unwrap())
        .collect();
    let leaf = EndEntityCert::try_from(&chain[0])?;
    let time = UnixTime::since_unix_epoch(Duration::from_secs(u64::try_from(now.as_second()).unwrap()));
    let parsed: Vec<CertRevocationList<'_>> = lists
        .iter()
        .map(|list| BorrowedCertRevocationList::from_der(list).unwrap().into())
        .collect();
    let parsed: Vec<&CertRevocationList<'_>> = parsed.iter().collect();
    for usage in [KeyUsage::server_auth(), KeyUsage::client_auth()] {
        let revocation = RevocationOptionsBuilder::new(&parsed).ok().map(|options| {
            options
                .with_depth(webpki::RevocationCheckDepth::EndEntity)
                .with_expiration_policy(ExpirationPolicy::Enforce)
                .build()
        });
        leaf.verify_for_usage(
            ALL_VERIFICATION_ALGS,
            &anchors,
            &chain[1..],
            time,
            usage,
            revocation,
            None,
        )?;
    }
    Ok(())
}
