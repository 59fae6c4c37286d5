# The head of a request stream and of its answer (tunnel-protocol.md §3.3, §4.1).
# Ids and ordinals are the wire contract; names and comments are ours.
@0xb29021ef7421cc32;

enum ConnectionType @0xc52e1bac26d379c8 {
  http @0;
  websocket @1;
  tcp @2;
}

# One key and value; a key may repeat and order is kept within a key.
struct Metadata @0xe1446b97bfd1cd37 {
  key @0 :Text;
  val @1 :Text;
}

struct ConnectRequest @0xc47116a1045e4061 {
  dest @0 :Text;
  type @1 :ConnectionType;
  metadata @2 :List(Metadata);
}

struct ConnectResponse @0xb1032ec91cef8727 {
  error @0 :Text;
  metadata @1 :List(Metadata);
}
