use std::{fs, path::Path, sync::Arc};

use super::*;

pub(super) fn flow(more: serde_json::Value) -> Flow {
    let mut value = serde_json::json!({
        "sequence": 1, "time": "2026-01-01T00:00:00Z", "node": "n1", "connection": 1, "event": "close",
        "verdict": "forwarded", "reason": "none", "direction": "egress", "path": "tunnel",
        "source": {"address": "10.0.0.1:4000", "namespace": "shop", "pod": "web-0",
            "identity": "spiffe://cluster.local/ns/shop/sa/web"},
        "destination": {"address": "[fd00::1]:80"},
        "bytesSent": 1, "bytesReceived": 2, "durationUs": 3,
    });
    for (name, own) in more.as_object().unwrap() {
        value[name] = own.clone();
    }
    serde_json::from_value(value).unwrap()
}

#[test]
fn a_line_is_one_line_whatever_others_wrote() {
    let own = flow(serde_json::json!({}));
    assert_eq!(
        line::text(&own),
        "time=2026-01-01T00:00:00Z node=n1 event=close verdict=forwarded direction=egress path=tunnel src=shop/web-0 \
         src_addr=10.0.0.1:4000 src_id=spiffe://cluster.local/ns/shop/sa/web dst_addr=[fd00::1]:80 sent=1 received=2 \
         duration_us=3"
    );
    let evil = flow(serde_json::json!({
        "process": { "pid": 7, "name": "a\" b=\u{1b}[2J\n\u{202e}" }, "reason": "policy_denied",
        "policy": { "policy": "shop/no web", "rule": 2 },
    }));
    let text = line::text(&evil);
    assert!(
        text.contains(r#"process="a\" b=\u{1b}[2J\u{a}\u{202e}" pid=7"#),
        "{text}"
    );
    assert!(
        text.contains(r#"reason=policy_denied"#) && text.contains(r#"policy="shop/no web rule 2""#),
        "{text}"
    );
    assert!(text.is_ascii() && !text.contains(char::is_control));
}

#[test]
fn of_those_that_were_let_through_one_in_so_many_is_written_and_all_others() {
    let mut log = AccessLog::new(AccessLogConfig {
        mode: AccessLogMode::Sampled,
        sample: NonZeroU32::new(10).unwrap(),
        format: LogFormat::Text,
    });
    let close = flow(serde_json::json!({}));
    let count = (0..100).filter(|_| log.wants(&close)).count();
    assert_eq!(count, 10);
    let refused =
        flow(serde_json::json!({ "event": "refused", "verdict": "denied", "reason": "not_allowed" }));
    assert!((0..5).all(|_| log.wants(&refused)));
    assert!(!log.wants(&flow(serde_json::json!({ "event": "open" }))));
}

fn lines(path: &Path) -> usize {
    fs::read_to_string(path).map_or(0, |text| text.lines().count())
}

#[test]
fn full_files_are_put_aside_and_the_oldest_go() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("below/flows.json");
    let mut file = RotatingFile::open(&path, 30, 2).unwrap();
    for number in 0..7 {
        file.write(format!("line {number} of ten\n").as_bytes()).unwrap();
    }
    let aside = |number: u32| folder.path().join(format!("below/flows.json.{number}"));
    assert_eq!(
        (
            lines(&path),
            lines(&aside(1)),
            lines(&aside(2)),
            aside(3).exists()
        ),
        (1, 2, 2, false)
    );
    assert!(fs::read_to_string(&path).unwrap().starts_with("line 6"));
    // Whoever opens it again goes on.
    let mut file = RotatingFile::open(&path, 30, 2).unwrap();
    file.write(b"one more of it\n").unwrap();
    assert_eq!(lines(&path), 2);
    // And one that was taken away is made anew.
    fs::remove_file(&path).unwrap();
    file.write(b"again\n").unwrap();
    assert_eq!(lines(&path), 1);
}

#[test]
fn both_forms_of_a_file_are_read_back() {
    let folder = tempfile::tempdir().unwrap();
    for format in [ExportFormat::Json, ExportFormat::Jsonpb] {
        let config = ExportConfig {
            file: folder.path().join(format!("{format:?}")),
            max_mib: 1,
            keep: 0,
            format,
        };
        let origin = Origin {
            cluster: String::new(),
            version: "0".to_owned(),
            run: 1,
        };
        let mut export = Export::open(&config, origin).unwrap();
        let own = flow(serde_json::json!({}));
        export
            .write(&[Arc::new(own.clone()), Arc::new(own.clone())])
            .unwrap();
        let text = fs::read_to_string(&config.file).unwrap();
        for line in text.lines() {
            let read = match format {
                ExportFormat::Json => serde_json::from_str(line).unwrap(),
                ExportFormat::Jsonpb => {
                    let response = weir_hubble::json::of_line(line).unwrap();
                    let Some(weir_proto::observer::get_flows_response::ResponseTypes::Flow(flow)) =
                        response.response_types
                    else {
                        panic!("{line}")
                    };
                    weir_hubble::from_hubble(&flow).unwrap()
                }
            };
            assert_eq!(read, own);
        }
        assert_eq!(text.lines().count(), 2);
    }
}

/// Takes nothing until it is told to.
struct Stubborn(Arc<std::sync::atomic::AtomicBool>);

impl Target for Stubborn {
    const NAME: &'static str = "file";

    fn write(&mut self, _: &[Arc<Flow>]) -> io::Result<()> {
        if self.0.load(std::sync::atomic::Ordering::Relaxed) {
            Ok(())
        } else {
            Err(io::Error::from(io::ErrorKind::StorageFull))
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_written_is_counted_and_tried_again_with_the_next() {
    let metrics = Metrics::new();
    let flows = FlowLog::new("n1", 100, metrics.clone());
    let takes = Arc::new(std::sync::atomic::AtomicBool::new(false));
    follow(Stubborn(takes.clone()), flows.clone(), metrics.clone()).unwrap();
    let count = |family: &prometheus::IntCounterVec| family.with_label_values(&["file"]).get();
    let until = async |wanted: (u64, u64)| {
        for _ in 0..500 {
            if (count(&metrics.exported), count(&metrics.export_dropped)) == wanted {
                return;
            }
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
        panic!(
            "{} written, {} dropped",
            count(&metrics.exported),
            count(&metrics.export_dropped)
        );
    };
    flows.record(flow(serde_json::json!({})));
    flows.record(flow(serde_json::json!({})));
    until((0, 2)).await;
    takes.store(true, std::sync::atomic::Ordering::Relaxed);
    flows.record(flow(serde_json::json!({})));
    until((1, 2)).await;
}

#[test]
fn what_is_no_file_is_not_written_to() {
    let error = RotatingFile::open(Path::new("/dev/null"), 1, 0).unwrap_err();
    assert_eq!(error.to_string(), "expected a regular file");
}
