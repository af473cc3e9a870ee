//! What is measured only when somebody looks.

use std::sync::PoisonError;

use jiff::Timestamp;
use weir_types::TrafficDirection;

use super::{direction, fill::set};
use crate::{agent::Agent, hubble::OwnCertificate};

impl Agent {
    /// Brings up to date what is measured only when somebody looks. Walks nothing that grows with traffic.
    pub fn refresh_metrics(&self) {
        self.refresh_certificates();
        self.refresh_fill();
        let metrics = &self.node.metrics;
        set(&metrics.pods_refused, self.enrolment.problems().len() as u64);
        let faults = self.faults.lock().unwrap_or_else(PoisonError::into_inner).len();
        let unserved = self.flows_certificate.as_ref().and_then(OwnCertificate::problem);
        let faults = faults + usize::from(unserved.is_some());
        set(&metrics.faults, faults as u64);
        let updated = self.control.as_ref().and_then(|state| state.status().updated);
        metrics
            .control_plane_updated
            .set(updated.map_or(0, Timestamp::as_second));
        let tunnels = self.node.tunnels.open();
        for side in [TrafficDirection::Egress, TrafficDirection::Ingress] {
            let open = tunnels.iter().filter(|tunnel| tunnel.direction == side).count();
            set(
                &metrics.tunnels.with_label_values(&[direction(side)]),
                open as u64,
            );
        }
    }

    fn refresh_certificates(&self) {
        let (metrics, store) = (&self.node.metrics, &self.node.certificates);
        let held = store.status();
        let first = |times: &mut dyn Iterator<Item = Timestamp>| times.min().map_or(0, Timestamp::as_second);
        set(&metrics.certificates, held.len() as u64);
        metrics
            .certificate_expiry
            .set(first(&mut held.iter().map(|one| one.not_after)));
        metrics
            .certificate_start
            .set(first(&mut held.iter().map(|one| one.not_before)));
        metrics
            .root_expiry
            .set(first(&mut store.roots().iter().map(|root| root.not_after)));
        let now = Timestamp::now();
        let left = held
            .iter()
            .map(|one| part_left(one.not_before, one.not_after, now));
        metrics.certificate_left.set(left.fold(1.0, f64::min));
        // Those that are held but could not be renewed, and those that there never were.
        let failing = held.iter().filter(|one| one.problem.is_some()).count() + store.problems().len();
        set(&metrics.certificate_problems, failing as u64);
    }

    fn refresh_fill(&self) {
        let (node, metrics) = (&self.node, &self.node.metrics);
        for map in node.datapath.maps() {
            if map.name == "CONNECTIONS" {
                set(&metrics.kernel_connections, map.entries);
            }
            metrics.fill.map(map.name, map.entries, map.capacity);
        }
        let ring = node.datapath.event_ring();
        metrics.fill.ring(ring.entries, ring.capacity);
        let flows = node.flows.fill();
        metrics.fill.queue(flows.queued, flows.queue);
        metrics.fill.records(flows.kept, flows.ring);
        let (used, capacity) = node.descriptors();
        metrics.fill.descriptors(used, capacity);
    }
}

/// How much of a life is left: 1 at its start, 0 from its end on.
fn part_left(start: Timestamp, end: Timestamp, now: Timestamp) -> f64 {
    let seconds = |from: Timestamp, to: Timestamp| to.duration_since(from).as_secs_f64();
    let whole = seconds(start, end);
    if whole <= 0.0 {
        return 0.0;
    }
    (seconds(now, end) / whole).clamp(0.0, 1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_part_left_is_of_the_whole_life() {
        let at = |second: i64| Timestamp::from_second(second).unwrap();
        for (now, left) in [(0, 1.0), (100, 1.0), (125, 0.75), (200, 0.0), (300, 0.0)] {
            assert!(
                (part_left(at(100), at(200), at(now)) - left).abs() < 1e-9,
                "{now}"
            );
        }
        assert!(part_left(at(100), at(100), at(50)) == 0.0);
    }
}
