// A client that knows nothing of dataplane but its subjects: says that games were played, and
// waits for the games as an exporter does. node client.mjs URL GAMES
import { connect } from "@nats-io/transport-node";
import { AckPolicy, jetstream, jetstreamManager } from "@nats-io/jetstream";

const [url, games] = process.argv.slice(2);
const connection = await connect({ servers: url, name: "exporter" });
const manager = await jetstreamManager(connection);
await manager.consumers.add("DATAPLANE", {
  durable_name: "exporter",
  ack_policy: AckPolicy.Explicit,
  filter_subject: "dp.chain.*.NEW_GAMES_AVAILABLE.>",
});

const js = jetstream(connection);
const payload = JSON.stringify({ games_count: Number(games), source_node: "gpu-7" });
const receipt = await js.publish("dp.node.gpu-7.SELFPLAY_COMPLETE.hex8_2p", payload);

const consumer = await js.consumers.get("DATAPLANE", "exporter");
const message = await consumer.next({ expires: 60_000 });
if (message === null) throw new Error("no games within a minute");
const said = { asked: receipt.seq, subject: message.subject, event: message.json() };
if (!(await message.ackAck())) throw new Error("the ack was not taken");
console.log(JSON.stringify(said));
await connection.drain();
