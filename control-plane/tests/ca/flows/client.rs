//! Clients that run elsewhere: `weir-control flows-client`.

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn a_client_elsewhere_gets_a_certificate_by_which_it_can_be_nobody_else() {
    let stage = Stage::new().await;
    let dir = tempfile::tempdir().unwrap();
    let early = stage.client(dir.path(), &["anna"]);
    assert!(!early.status.success() && early.stdout.is_empty());
    let said = text(&early);
    assert!(
        said.contains("there is no authority") && said.contains("flows.port.enabled"),
        "{said}"
    );
    stage.secret().create_if_absent(Timestamp::now()).await.unwrap();
    for wrong in ["relay.hubble.weir.dev", "a.b", "A", "*", ""] {
        let output = stage.client(dir.path(), &[wrong]);
        assert!(!output.status.success() && output.stdout.is_empty(), "{wrong}");
    }
    for days in ["0", "366"] {
        assert!(
            !stage
                .client(dir.path(), &["anna", "--days", days])
                .status
                .success(),
            "{days}"
        );
    }
    let output = stage.client(dir.path(), &["anna", "--days", "30"]);
    assert!(output.status.success(), "{}", text(&output));
    // All in one file, for the three options of clients alike.
    let printed = String::from_utf8(output.stdout).unwrap();
    assert!(printed.starts_with("-----BEGIN PRIVATE KEY-----"));
    KeyPair::from_pem(&printed).unwrap();
    if !is_there() {
        return;
    }
    std::fs::write(dir.path().join("leaf.pem"), &printed).unwrap();
    std::fs::write(dir.path().join("roots.pem"), &printed).unwrap();
    let name = "anna.client.hubble.weir.dev";
    let good = verify(dir.path(), "sslclient", name);
    assert!(good.status.success(), "{}", text(&good));
    assert!(
        !verify(dir.path(), "sslserver", name).status.success(),
        "it can serve nobody"
    );
    for (days, expected) in [(29, true), (31, false)] {
        let at = (Timestamp::now() + days * DAY).as_second().to_string();
        let roots = ["verify", "-CAfile", "roots.pem", "-attime", &at, "leaf.pem"];
        assert_eq!(
            openssl(dir.path(), &roots).status.success(),
            expected,
            "after {days} days"
        );
    }
}
