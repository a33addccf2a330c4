// What the sockets of pools see when their sessions are ended, in which order; and that the process lives. Case C40.
//
// URLS has a URL for each way to pglease. On "use" all pools take and use their connections, and give most back; on
// "ended" it waits until those have ended, and tells what each socket of node-postgres saw.

import { createInterface } from "node:readline";
import pg from "pg";
import postgres from "postgres";
import { createPool, sql } from "slonik";

const URLS = JSON.parse(process.env.URLS);
const SIZE = 13;
// So many of them stay taken, with nothing to do.
const TAKEN = 3;

class Pool {
  constructor(config) {
    this.pool = new pg.Pool({ ...config, max: SIZE, idleTimeoutMillis: 0 });
    this.pool.on("error", () => {});
    this.sockets = [];
  }

  async use() {
    const clients = await Promise.all(Array.from({ length: SIZE }, () => this.pool.connect()));
    await Promise.all(clients.map((client) => client.query("SELECT count(*) FROM t")));
    this.sockets = clients.map((client) => watch(client.connection.stream));
    for (const client of clients.slice(TAKEN)) {
      client.release();
    }
    for (const client of clients.slice(0, TAKEN)) {
      client.once("error", (error) => client.release(error));
    }
  }

  // What each socket saw, and how many did.
  async ended() {
    const counts = {};
    for (const seen of await Promise.all(this.sockets)) {
      counts[seen] = (counts[seen] ?? 0) + 1;
    }
    return counts;
  }
}

// All that happens to it from now on, in one line, once it is closed.
function watch(socket) {
  return new Promise((resolve) => {
    const bytes = [];
    const seen = [];
    socket.on("data", (data) => bytes.push(data));
    socket.on("error", (error) => seen.push(error.code));
    // The driver throws it away at the first error; what comes behind that is to be seen as well.
    const destroy = socket.destroy.bind(socket);
    let thrown = false;
    socket.destroy = (...why) => {
      thrown = true;
      return seen.length > 0 ? destroy(...why) : socket;
    };
    socket.on("end", () => {
      seen.push("end");
      if (thrown) {
        destroy();
      }
    });
    socket.on("close", () => resolve([...messages(Buffer.concat(bytes)), ...seen, "close"].join(", ")));
  });
}

// Each message by its tag, an error with its SQLSTATE.
function messages(bytes) {
  const found = [];
  while (bytes.length > 0) {
    const length = 1 + bytes.readInt32BE(1);
    const fields = bytes.subarray(5, length).toString().split("\0");
    const sqlstate = fields.find((field) => field.startsWith("C"));
    found.push([String.fromCharCode(bytes[0]), sqlstate?.slice(1)].join(" "));
    bytes = bytes.subarray(length);
  }
  return found;
}

const pools = Object.fromEntries(Object.entries(URLS).map(([way, config]) => [way, new Pool(config)]));
const url = Object.values(URLS)[0].connectionString;
const js = postgres(url, { max: 4 });
const slonik = await createPool(url, { maximumPoolSize: 4, idleTimeout: "DISABLE_TIMEOUT" });

for await (const command of createInterface({ input: process.stdin })) {
  if (command === "use") {
    await Promise.all(Object.values(pools).map((pool) => pool.use()));
    await js`SELECT count(*) FROM t`;
    await slonik.any(sql.unsafe`SELECT count(*) FROM t`);
    console.log("used");
  } else {
    const all = Object.entries(pools).map(async ([way, pool]) => [way, await pool.ended()]);
    console.log(`ended ${JSON.stringify(Object.fromEntries(await Promise.all(all)))}`);
  }
}
