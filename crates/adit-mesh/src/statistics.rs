//! What a lane's device and socket count.

/// Counters of a lane's device and socket.
#[derive(Debug, Clone, Default)]
pub struct IoStatistics {
    /// Calls that sent datagrams.
    pub sends: u64,
    /// Of these, trains of more than one datagram.
    pub trains: u64,
    /// Datagrams sent.
    pub sent_datagrams: u64,
    /// Batches received: coalesced datagrams count as one.
    pub batches: u64,
    /// Datagrams received.
    pub received_datagrams: u64,
    /// Packets and super-packets read from the device.
    pub device_reads: u64,
    /// Packets and super-packets written to it.
    pub device_writes: u64,
    /// Datagrams dropped because the send buffer stayed full.
    pub send_buffer_full: u64,
    /// Datagrams that the kernel refused to send: no route, firewall, …
    pub send_refused: u64,
    /// Packets handed to further lanes.
    pub handed_over: u64,
    /// Packets dropped because the lane that they belong to did not keep up.
    pub lane_full: u64,
    /// Datagrams, or joined ones as one, that the kernel dropped because the receive buffer was full.
    pub receive_buffer_full: u64,
    /// Packets that the device refused.
    pub device_refused: u64,
    /// Packets from the device whose offload made no sense.
    pub device_malformed: u64,
    /// Receive calls that failed.
    pub receive_failed: u64,
    /// How often trains to a path were given up because the kernel refused them or because they got lost.
    pub train_steps_down: u64,
    /// Paths to which single datagrams are sent now.
    pub paths_without_trains: u64,
    /// How often joining received datagrams was given up because it was done wrongly.
    pub receive_steps_down: u64,
    /// Lanes on which datagrams are received one by one for that reason.
    pub receives_singly: u64,
    /// How often the device refused a super-packet, which was then written packet by packet.
    pub device_steps_down: u64,
}

impl IoStatistics {
    /// Drops by reason.
    #[must_use]
    pub fn drops(&self) -> [(&'static str, u64); 6] {
        [
            ("send_buffer_full", self.send_buffer_full),
            ("send_refused", self.send_refused),
            ("lane_full", self.lane_full),
            ("receive_buffer_full", self.receive_buffer_full),
            ("device_refused", self.device_refused),
            ("device_malformed", self.device_malformed),
        ]
    }

    /// Adds what a further lane of the node counts, but not what it read: the first has read that from the device.
    pub(crate) fn absorb(&mut self, other: &Self) {
        self.sends += other.sends;
        self.trains += other.trains;
        self.sent_datagrams += other.sent_datagrams;
        self.batches += other.batches;
        self.received_datagrams += other.received_datagrams;
        self.device_writes += other.device_writes;
        self.send_buffer_full += other.send_buffer_full;
        self.send_refused += other.send_refused;
        self.handed_over += other.handed_over;
        self.lane_full += other.lane_full;
        self.receive_buffer_full += other.receive_buffer_full;
        self.device_refused += other.device_refused;
        self.device_malformed += other.device_malformed;
        self.receive_failed += other.receive_failed;
        self.train_steps_down += other.train_steps_down;
        self.paths_without_trains += other.paths_without_trains;
        self.receive_steps_down += other.receive_steps_down;
        self.receives_singly += other.receives_singly;
        self.device_steps_down += other.device_steps_down;
    }

    /// Everything else that only grows, by name.
    #[must_use]
    pub fn counts(&self) -> [(&'static str, u64); 12] {
        [
            ("sends", self.sends),
            ("trains", self.trains),
            ("sent_datagrams", self.sent_datagrams),
            ("batches", self.batches),
            ("received_datagrams", self.received_datagrams),
            ("device_reads", self.device_reads),
            ("handed_over", self.handed_over),
            ("device_writes", self.device_writes),
            ("receive_failed", self.receive_failed),
            ("train_steps_down", self.train_steps_down),
            ("receive_steps_down", self.receive_steps_down),
            ("device_steps_down", self.device_steps_down),
        ]
    }
}
