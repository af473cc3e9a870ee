//! Certificates and identities that are not to be trusted any more.

use std::{fmt, str::FromStr, time::Duration};

use jiff::Timestamp;
use rcgen::{
    CertificateRevocationListParams, KeyIdMethod, RevocationReason, RevokedCertParams, SerialNumber,
};
use rustls_pki_types::CertificateRevocationListDer;
use serde::{Deserialize, Serialize};
use weir_types::Identity;

use super::{
    authority::{Authority, AuthorityError, CLOCK_SKEW, LONGEST_LIFETIME, hex},
    clock::{after, before, offset},
};

/// How long a revocation list counts. As long as the longest-lived leaf: a consumer that hears nothing for longer has
/// no valid peer left either.
pub const LIST_LIFETIME: Duration = LONGEST_LIFETIME;
/// Most entries of each kind: they share a Secret, which holds 1 MiB.
pub const MOST_REVOKED: usize = 4_000;
/// Octets of a serial number (RFC 5280 section 4.1.2.2).
const MOST_SERIAL: usize = 20;

/// A certificate's serial number. Reads hexadecimal with or without colons, as `openssl x509 -serial` prints it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Serial(Vec<u8>);

/// Not a serial number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a serial number is 1 to {MOST_SERIAL} octets in hexadecimal, and not zero")]
pub struct SerialError;

/// Why a certificate is revoked (RFC 5280 section 5.3.1).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Reason {
    /// Not said.
    #[default]
    Unspecified,
    /// Somebody else may have the key.
    KeyCompromise,
    /// Another takes its place.
    Superseded,
    /// The workload is no more.
    CessationOfOperation,
    /// It should not have been issued.
    PrivilegeWithdrawn,
}

/// One certificate that is revoked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RevokedSerial {
    /// Its serial number.
    pub serial: Serial,
    /// Since when.
    pub since: Timestamp,
    /// Why.
    #[serde(default)]
    pub reason: Reason,
}

/// One identity that gets no certificates.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RevokedIdentity {
    /// The identity.
    pub identity: Identity,
    /// Since when: certificates from before are not to be trusted.
    pub since: Timestamp,
}

/// All that is revoked.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Revoked {
    /// Certificates; these are what a revocation list can name.
    pub serials: Vec<RevokedSerial>,
    /// Identities, which are not issued to. Their serial numbers are not recorded: consumers compare the identity.
    pub identities: Vec<RevokedIdentity>,
}

/// There is no room for another entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{MOST_REVOKED} are revoked already: rotate the root instead")]
pub struct Full;

// === impl Serial ===

impl Serial {
    /// From its octets; leading zeros do not count.
    ///
    /// # Errors
    /// When it is zero or too long.
    pub fn from_octets(octets: &[u8]) -> Result<Self, SerialError> {
        let first = octets.iter().position(|octet| *octet != 0).ok_or(SerialError)?;
        let significant = &octets[first..];
        if significant.len() > MOST_SERIAL {
            return Err(SerialError);
        }
        Ok(Self(significant.to_vec()))
    }
}

impl FromStr for Serial {
    type Err = SerialError;

    fn from_str(text: &str) -> Result<Self, SerialError> {
        let digits: Vec<char> = text.trim().chars().filter(|c| *c != ':').collect();
        if digits.len() > 2 * MOST_SERIAL + 2 {
            return Err(SerialError);
        }
        let digit = |c: &char| c.to_digit(16).and_then(|digit| u8::try_from(digit).ok());
        let mut octets = Vec::with_capacity(digits.len() / 2 + 1);
        for pair in digits.rchunks(2) {
            let mut octet = 0;
            for c in pair {
                octet = octet << 4 | digit(c).ok_or(SerialError)?;
            }
            octets.push(octet);
        }
        octets.reverse();
        Self::from_octets(&octets)
    }
}

impl TryFrom<String> for Serial {
    type Error = SerialError;

    fn try_from(text: String) -> Result<Self, SerialError> {
        text.parse()
    }
}

impl From<Serial> for String {
    fn from(serial: Serial) -> Self {
        serial.to_string()
    }
}

impl fmt::Display for Serial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex(&self.0))
    }
}

// === impl Revoked ===

impl Revoked {
    /// Whether an identity gets no certificate.
    #[must_use]
    pub fn names(&self, identity: &Identity) -> bool {
        self.identities.iter().any(|entry| entry.identity == *identity)
    }

    /// Revokes a certificate. What is there already stays as it is; entries whose certificates have expired for sure go.
    ///
    /// # Errors
    /// When there is no room.
    pub fn add_serial(&mut self, serial: Serial, reason: Reason, now: Timestamp) -> Result<(), Full> {
        // RFC 5280 section 3.3: an entry must be on one list after the certificate's end, so a list's life is added.
        let oldest = before(now, LONGEST_LIFETIME + LIST_LIFETIME + CLOCK_SKEW);
        self.serials.retain(|entry| entry.since > oldest);
        if self.serials.iter().any(|entry| entry.serial == serial) {
            return Ok(());
        }
        if self.serials.len() >= MOST_REVOKED {
            return Err(Full);
        }
        self.serials.push(RevokedSerial {
            serial,
            since: now,
            reason,
        });
        Ok(())
    }

    /// Revokes an identity.
    ///
    /// # Errors
    /// When there is no room.
    pub fn add_identity(&mut self, identity: Identity, now: Timestamp) -> Result<(), Full> {
        if self.names(&identity) {
            return Ok(());
        }
        if self.identities.len() >= MOST_REVOKED {
            return Err(Full);
        }
        self.identities.push(RevokedIdentity { identity, since: now });
        Ok(())
    }

    /// Issues to an identity again.
    pub fn remove_identity(&mut self, identity: &Identity) {
        self.identities.retain(|entry| entry.identity != *identity);
    }

    /// The revocation list of an authority (RFC 5280 section 5).
    ///
    /// # Errors
    /// When the authority may not sign lists, or signing fails.
    pub fn list(
        &self,
        authority: &Authority,
        now: Timestamp,
    ) -> Result<CertificateRevocationListDer<'static>, AuthorityError> {
        let time = |moment| offset(moment).ok_or(AuthorityError::Time);
        let revoked_certs = self.serials.iter().map(|entry| {
            Ok(RevokedCertParams {
                serial_number: SerialNumber::from_slice(&entry.serial.0),
                revocation_time: time(entry.since)?,
                reason_code: match entry.reason {
                    // RFC 5280 section 5.3.1: to be left out.
                    Reason::Unspecified => None,
                    Reason::KeyCompromise => Some(RevocationReason::KeyCompromise),
                    Reason::Superseded => Some(RevocationReason::Superseded),
                    Reason::CessationOfOperation => Some(RevocationReason::CessationOfOperation),
                    Reason::PrivilegeWithdrawn => Some(RevocationReason::PrivilegeWithdrawn),
                },
                invalidity_date: None,
            })
        });
        // Replicas sign lists of their own, without a counter between them; time rises for all of them.
        let number = u64::try_from(now.as_millisecond()).map_err(|_| AuthorityError::Time)?;
        let list = CertificateRevocationListParams {
            // As for certificates, for the sake of clocks that are behind.
            this_update: time(before(now, CLOCK_SKEW))?,
            next_update: time(after(now, LIST_LIFETIME))?,
            crl_number: SerialNumber::from(number),
            issuing_distribution_point: None,
            revoked_certs: revoked_certs.collect::<Result<_, AuthorityError>>()?,
            key_identifier_method: authority
                .key_identifier()
                .map_or(KeyIdMethod::Sha256, |identifier| {
                    KeyIdMethod::PreSpecified(identifier.to_vec())
                }),
        };
        match list.signed_by(&authority.issuer()?) {
            Ok(list) => Ok(list.into()),
            Err(rcgen::Error::IssuerNotCrlSigner) => Err(AuthorityError::NoRevocationLists),
            Err(error) => Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn serial_numbers_are_read_as_openssl_prints_them() {
        for (text, expected) in [
            ("4F", Ok("4f")),
            ("00:0a:bc", Ok("0abc")),
            ("abc", Ok("0abc")),
            ("0", Err(SerialError)),
            ("", Err(SerialError)),
            ("xy", Err(SerialError)),
            (&"ff".repeat(20), Ok(&*"ff".repeat(20))),
            (&"ff".repeat(21), Err(SerialError)),
        ] {
            let read = text.parse::<Serial>().map(|serial| serial.to_string());
            assert_eq!(read, expected.map(str::to_owned), "{text}");
        }
    }

    #[test]
    fn entries_go_when_their_certificates_have_expired_for_sure() {
        let mut revoked = Revoked::default();
        let start: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        let one: Serial = "01".parse().unwrap();
        revoked
            .add_serial(one.clone(), Reason::KeyCompromise, start)
            .unwrap();
        revoked
            .add_serial(one, Reason::Superseded, after(start, Duration::from_secs(60)))
            .unwrap();
        assert_eq!(revoked.serials.len(), 1, "named once");
        assert_eq!(revoked.serials[0].reason, Reason::KeyCompromise);
        let later = after(start, LONGEST_LIFETIME);
        revoked
            .add_serial("02".parse().unwrap(), Reason::default(), later)
            .unwrap();
        assert_eq!(revoked.serials.len(), 2);
        let much_later = after(start, 3 * LONGEST_LIFETIME);
        revoked
            .add_serial("03".parse().unwrap(), Reason::default(), much_later)
            .unwrap();
        let left: Vec<String> = revoked
            .serials
            .iter()
            .map(|entry| entry.serial.to_string())
            .collect();
        assert_eq!(left, ["02", "03"]);
    }

    #[test]
    fn there_is_a_most() {
        let now: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        let mut revoked = Revoked::default();
        for number in 1..=MOST_REVOKED {
            let serial = Serial::from_octets(&number.to_be_bytes()).unwrap();
            revoked.add_serial(serial, Reason::default(), now).unwrap();
        }
        let one_more = Serial::from_octets(&[0xff; 9]).unwrap();
        assert_eq!(revoked.add_serial(one_more, Reason::default(), now), Err(Full));
    }
}
