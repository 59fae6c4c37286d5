# Registration, configuration and UDP-session calls (tunnel-protocol.md §3.2, §3.3).
# Ids, ordinals and sizes are the wire contract; names and comments are ours.
#
# The interfaces themselves are not declared: a call carries only the interface's id and the
# method's ordinal, which rpc.rs and registration.rs hold as constants, and declaring them would
# generate client and server machinery that nothing uses. What travels inside a call are the
# parameter and result structs, which the original leaves implicit; they are spelled out here
# under ids of our own, because those ids never reach the wire.
@0xdb8274f9144abc7e;

struct TunnelAuth @0x9496331ab9cd463f {
  accountTag @0 :Text;
  tunnelSecret @1 :Data;
}

struct ClientInfo @0x83ced0145b2f114b {
  clientId @0 :Data;
  features @1 :List(Text);
  version @2 :Text;
  arch @3 :Text;
}

struct ConnectionOptions @0xb4bf9861fe035d04 {
  client @0 :ClientInfo;
  originLocalIp @1 :Data;
  replaceExisting @2 :Bool;
  compressionQuality @3 :UInt8;
  numPreviousAttempts @4 :UInt8;
}

struct ConnectionResponse @0xdbaa9d03d52b62dc {
  result :union {
    error @0 :ConnectionError;
    connectionDetails @1 :ConnectionDetails;
  }
}

struct ConnectionError @0xf5f383d2785edb86 {
  cause @0 :Text;
  retryAfter @1 :Int64;
  shouldRetry @2 :Bool;
}

struct ConnectionDetails @0xb5f39f082b9ac18a {
  uuid @0 :Data;
  locationName @1 :Text;
  tunnelIsRemotelyManaged @2 :Bool;
}

struct RegisterUdpSessionResponse @0xab6d5210c1f26687 {
  err @0 :Text;
  spans @1 :Data;
}

struct UpdateConfigurationResponse @0xdb58ff694ba05cf9 {
  latestAppliedVersion @0 :Int32;
  err @1 :Text;
}

# RegistrationServer.registerConnection
struct RegisterConnectionParams @0xe6646dec8feaa6e1 {
  auth @0 :TunnelAuth;
  tunnelId @1 :Data;
  connIndex @2 :UInt8;
  options @3 :ConnectionOptions;
}
struct RegisterConnectionResults @0xea50d822450d1f17 {
  result @0 :ConnectionResponse;
}

# RegistrationServer.updateLocalConfiguration
struct UpdateLocalConfigurationParams @0xc5d6e311876a3604 {
  config @0 :Data;
}

# A method without parameters or results still carries an empty struct.
struct Empty @0xe5ceae5d6897d7be {}

# SessionManager.registerUdpSession
struct RegisterUdpSessionParams @0x904e297b87fbecea {
  sessionId @0 :Data;
  dstIp @1 :Data;
  dstPort @2 :UInt16;
  closeAfterIdleHint @3 :Int64;
  traceContext @4 :Text = "";
}
struct RegisterUdpSessionResults @0xa8cb0e53e8a3f0a1 {
  result @0 :RegisterUdpSessionResponse;
}

# SessionManager.unregisterUdpSession
struct UnregisterUdpSessionParams @0xf6b0e0f0c0b3f3a1 {
  sessionId @0 :Data;
  message @1 :Text;
}

# ConfigurationManager.updateConfiguration
struct UpdateConfigurationParams @0xb177ca2526a3ca76 {
  version @0 :Int32;
  config @1 :Data;
}
struct UpdateConfigurationResults @0xa5dcfba1b6a7a9d2 {
  result @0 :UpdateConfigurationResponse;
}
