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
    /// 1 while datagrams are received one by one for that reason.
    pub receives_singly: u64,
    /// How often the device refused a super-packet, which was then written packet by packet.
    pub device_steps_down: u64,
}

impl IoStatistics {
    /// Drops by reason.
    #[must_use]
    pub fn drops(&self) -> [(&'static str, u64); 4] {
        [
            ("send_buffer_full", self.send_buffer_full),
            ("send_refused", self.send_refused),
            ("device_refused", self.device_refused),
            ("device_malformed", self.device_malformed),
        ]
    }

    /// Everything else that only grows, by name.
    #[must_use]
    pub fn counts(&self) -> [(&'static str, u64); 11] {
        [
            ("sends", self.sends),
            ("trains", self.trains),
            ("sent_datagrams", self.sent_datagrams),
            ("batches", self.batches),
            ("received_datagrams", self.received_datagrams),
            ("device_reads", self.device_reads),
            ("device_writes", self.device_writes),
            ("receive_failed", self.receive_failed),
            ("train_steps_down", self.train_steps_down),
            ("receive_steps_down", self.receive_steps_down),
            ("device_steps_down", self.device_steps_down),
        ]
    }
}
