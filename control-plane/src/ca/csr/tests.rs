//! Requests as honest clients make them, and as others do. Those in `requests` are by OpenSSL 3.

use rcgen::{
    Attribute, BasicConstraints, CertificateParams, CustomExtension, DistinguishedName, DnType, IsCa,
    KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384, PKCS_ECDSA_P521_SHA512,
    PKCS_ED25519, SanType,
};

use super::*;

const WEB: &str = "spiffe://cluster.local/ns/shop/sa/web";
const API: &str = "spiffe://cluster.local/ns/shop/sa/api";

fn web() -> Identity {
    WEB.parse().unwrap()
}

fn uri(text: &str) -> SanType {
    SanType::URI(text.try_into().unwrap())
}

fn params(names: Vec<SanType>) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.subject_alt_names = names;
    params
}

fn pem(params: &CertificateParams) -> String {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
    params.serialize_request(&key).unwrap().pem().unwrap()
}

fn verdict(pem: &str) -> Result<(), CsrError> {
    VerifiedRequest::parse(pem, &web()).map(|_| ())
}

/// The request with one bit of its DER changed.
fn flipped(pem: &str, from_end: usize) -> String {
    let der = CertificateSigningRequestDer::from_pem_slice(pem.as_bytes()).unwrap();
    let mut der = der.to_vec();
    let at = der.len() - from_end;
    der[at] ^= 1;
    armoured(&der)
}

fn armoured(der: &[u8]) -> String {
    use base64::{Engine as _, engine::general_purpose::STANDARD};
    let text = STANDARD.encode(der);
    format!("-----BEGIN CERTIFICATE REQUEST-----\n{text}\n-----END CERTIFICATE REQUEST-----\n")
}

#[test]
fn a_request_with_the_identity_or_no_name_is_taken_with_its_very_key() {
    for algorithm in [&PKCS_ECDSA_P256_SHA256, &PKCS_ECDSA_P384_SHA384, &PKCS_ED25519] {
        for names in [vec![uri(WEB)], vec![]] {
            let key = KeyPair::generate_for(algorithm).unwrap();
            let request = params(names).serialize_request(&key).unwrap().pem().unwrap();
            let verified = VerifiedRequest::parse(&request, &web()).unwrap();
            assert_eq!(
                verified.public_key().subject_public_key_info(),
                key.subject_public_key_info()
            );
        }
    }
}

#[test]
fn keys_and_signatures_are_of_accepted_kinds() {
    for (name, request, expected) in [
        ("RSA 2048", include_str!("requests/rsa-2048.pem"), Ok(())),
        (
            "P-384 with SHA-256",
            include_str!("requests/p384-sha256.pem"),
            Ok(()),
        ),
        (
            "RSA 1024",
            include_str!("requests/rsa-1024.pem"),
            Err(CsrError::WeakKey),
        ),
        (
            "secp256k1",
            include_str!("requests/secp256k1.pem"),
            Err(CsrError::WeakKey),
        ),
        (
            "P-256 by its parameters",
            include_str!("requests/p256-explicit.pem"),
            Err(CsrError::WeakKey),
        ),
        (
            "RSA SHA-1",
            include_str!("requests/rsa-2048-sha1.pem"),
            Err(CsrError::Signature),
        ),
        (
            "ECDSA SHA-1",
            include_str!("requests/p256-sha1.pem"),
            Err(CsrError::Signature),
        ),
    ] {
        assert_eq!(verdict(request), expected, "{name}");
    }
    let key = KeyPair::generate_for(&PKCS_ECDSA_P521_SHA512).unwrap();
    let request = params(vec![]).serialize_request(&key).unwrap().pem().unwrap();
    assert_eq!(verdict(&request), Err(CsrError::WeakKey), "P-521");
}

#[test]
fn without_proof_of_possession_there_is_nothing() {
    let honest = pem(&params(vec![uri(WEB)]));
    assert_eq!(verdict(&honest), Ok(()));
    assert_eq!(
        verdict(&flipped(&honest, 1)),
        Err(CsrError::Signature),
        "the signature"
    );
    let rsa = include_str!("requests/rsa-2048.pem");
    assert_eq!(
        verdict(&flipped(rsa, 40)),
        Err(CsrError::Signature),
        "the signature"
    );
    // Another's key in a request that is otherwise one's own.
    let (own, other) = (
        KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap(),
        KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap(),
    );
    let request = params(vec![]).serialize_request(&own).unwrap();
    let mut der = request.der().to_vec();
    let at = der
        .windows(65)
        .position(|window| window == own.der_bytes())
        .unwrap();
    der[at..at + 65].copy_from_slice(other.der_bytes());
    assert_eq!(verdict(&armoured(&der)), Err(CsrError::Signature), "the key");
}

#[test]
fn no_name_but_the_identity_may_be_asked_for() {
    let dns = || SanType::DnsName("kubernetes.default.svc".try_into().unwrap());
    let address = || SanType::IpAddress("10.0.0.1".parse().unwrap());
    let mail = || SanType::Rfc822Name("a@example.com".try_into().unwrap());
    for names in [
        vec![uri(API)],
        vec![uri(WEB), uri(API)],
        vec![uri(WEB), uri(WEB)],
        vec![uri(WEB), dns()],
        vec![dns()],
        vec![uri(WEB), address()],
        vec![mail()],
        vec![uri("spiffe://CLUSTER.local/ns/shop/sa/web")],
        vec![uri("spiffe://cluster.local/ns/shop/sa/web/")],
    ] {
        assert_eq!(
            verdict(&pem(&params(names.clone()))),
            Err(CsrError::Names),
            "{names:?}"
        );
    }
    // A second extension for names, where only the first is looked at by many.
    let mut twice = params(vec![uri(WEB)]);
    let mut names = vec![
        0x30,
        u8::try_from(API.len() + 2).unwrap(),
        0x86,
        u8::try_from(API.len()).unwrap(),
    ];
    names.extend(API.as_bytes());
    twice.custom_extensions = vec![CustomExtension::from_oid_content(&[2, 5, 29, 17], names.clone())];
    assert!(verdict(&pem(&twice)).is_err(), "two extensions");
    // Names that cannot be read are not no names.
    let mut unreadable = params(vec![]);
    unreadable.custom_extensions = vec![CustomExtension::from_oid_content(
        &[2, 5, 29, 17],
        vec![0x04, 0x01, 0x00],
    )];
    assert!(verdict(&pem(&unreadable)).is_err(), "unreadable names");
    // A second attribute with extensions.
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
    let mut extension = vec![
        0x06,
        0x03,
        0x55,
        0x1d,
        0x11,
        0x04,
        u8::try_from(names.len()).unwrap(),
    ];
    extension.extend(&names);
    let wrap = |tag: u8, inner: Vec<u8>| {
        let mut outer = vec![tag, u8::try_from(inner.len()).unwrap()];
        outer.extend(inner);
        outer
    };
    let values = wrap(0x31, wrap(0x30, wrap(0x30, extension)));
    let attribute = Attribute {
        oid: &[1, 2, 840, 113_549, 1, 9, 14],
        values,
    };
    let request = params(vec![uri(WEB)]).serialize_request_with_attributes(&key, vec![attribute]);
    assert_eq!(
        verdict(&request.unwrap().pem().unwrap()),
        Err(CsrError::Names),
        "two attributes"
    );
}

#[test]
fn nobody_becomes_an_authority_and_other_wishes_are_ignored() {
    let mut authority = params(vec![uri(WEB)]);
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    assert_eq!(verdict(&pem(&authority)), Err(CsrError::Authority));
    let mut wishes = params(vec![uri(WEB)]);
    wishes.is_ca = IsCa::ExplicitNoCa;
    wishes.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    wishes
        .distinguished_name
        .push(DnType::CommonName, "kube-apiserver");
    wishes.custom_extensions = vec![CustomExtension::from_oid_content(&[1, 2, 3, 4], vec![0x05, 0x00])];
    assert_eq!(verdict(&pem(&wishes)), Ok(()));
}

#[test]
fn what_is_not_one_request_is_refused() {
    let honest = pem(&params(vec![]));
    let certificate = params(vec![])
        .self_signed(&KeyPair::generate().unwrap())
        .unwrap()
        .pem();
    let mut trailing = CertificateSigningRequestDer::from_pem_slice(honest.as_bytes())
        .unwrap()
        .to_vec();
    trailing.push(0);
    for (name, request) in [
        ("nothing", String::new()),
        ("no PEM", "certificate, please".to_owned()),
        ("no DER", armoured(b"abc")),
        ("two", honest.repeat(2)),
        ("a certificate", certificate),
        ("more behind it", armoured(&trailing)),
        ("cut short", armoured(&trailing[..trailing.len() / 2])),
    ] {
        assert_eq!(verdict(&request), Err(CsrError::Malformed), "{name}");
    }
    assert_eq!(verdict(&"x".repeat(MOST_CSR_BYTES + 1)), Err(CsrError::TooLarge));
}
