//! What is measured only when somebody looks.

use std::sync::PoisonError;

use jiff::Timestamp;
use weir_types::TrafficDirection;

use super::{direction, fill::set};
use crate::agent::Agent;

impl Agent {
    /// Brings up to date what is measured only when somebody looks. Walks nothing that grows with traffic.
    pub fn refresh_metrics(&self) {
        self.refresh_certificates();
        self.refresh_fill();
        let metrics = &self.node.metrics;
        set(&metrics.pods_refused, self.enrolment.problems().len() as u64);
        let faults = self.faults.lock().unwrap_or_else(PoisonError::into_inner).len();
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
