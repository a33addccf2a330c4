// What all programs do alike: prints a line for each step, keeps a pool as it is told. See ../README.md.

import { createInterface } from "node:readline";
import { isDeepStrictEqual, inspect } from "node:util";

export const CLIENT = process.env.CLIENT;
export const URL = process.env.DATABASE_URL;
export const POOL_SIZE = 4;
export const BIG_ROWS = 100_000;
export const BIG_VALUE = 16 << 20;
export const COPIED = 10_000;
export const SLEEP = `SELECT pg_sleep(600) -- ${CLIENT}`;
// With the name of the client, of which there is one in each world.
export const IS_SLEEPING =
  "SELECT count(*)::int FROM pg_stat_activity WHERE state = 'active' AND pid <> pg_backend_pid()" +
  ` AND starts_with(query, '${SLEEP}')`;

// Does the steps, then keeps the pool: `pool.with(during)` takes a connection of it, has `during` use it, and gives
// it back. `during` gets a function from a statement to the one value of its result. `pool.ended()`, where a pool has
// it, returns once it knows that its connections were ended from afar. Errors that nobody handles end the process, as
// they do Node's.
export async function run(steps, pool) {
  let where = "start";
  try {
    for (const [name, step] of Object.entries(steps)) {
      where = name;
      await step();
      say(`ok ${name}`);
    }
    where = "pool";
    await useAll(pool);
    say("ok pool");
    let workers;
    for await (const command of createInterface({ input: process.stdin })) {
      where = command;
      if (command === "busy") {
        workers = new Workers(pool);
        await workers.begun;
        say("ok busy");
      } else if (command === "idle") {
        say(`ok idle ${await workers.stop()}`);
      } else if (command === "use") {
        await pool.ended?.();
        await useAll(pool);
        say("ok use");
      } else if (command === "end") {
        break;
      } else {
        throw new Error("unknown command");
      }
    }
    where = "end";
    await pool.close();
    say("ok end");
    process.exit(0);
  } catch (error) {
    fail(where, error);
  }
}

class Workers {
  constructor(pool) {
    this.over = false;
    this.queries = 0;
    const begun = [];
    this.all = Array.from({ length: POOL_SIZE }, async () => {
      let first;
      begun.push(new Promise((resolve) => (first = resolve)));
      while (!this.over) {
        await pool.with(async (value) => expect(await value("SELECT count(*)::int FROM t"), 100));
        this.queries += 1;
        first();
        await pause(10);
      }
    });
    for (const worker of this.all) {
      worker.catch((error) => fail("busy", error));
    }
    this.begun = Promise.all(begun);
  }

  async stop() {
    this.over = true;
    await Promise.all(this.all);
    return this.queries;
  }
}

// Takes all connections of the pool at the same time.
async function useAll(pool) {
  let missing = POOL_SIZE;
  let all;
  const together = new Promise((resolve) => (all = resolve));
  const one = () =>
    pool.with(async (value) => {
      missing -= 1;
      if (missing === 0) {
        all();
      }
      await together;
      expect(await value("SELECT count(*)::int FROM t"), 100);
    });
  await Promise.all(Array.from({ length: POOL_SIZE }, one));
}

export function expect(found, wanted) {
  if (!isDeepStrictEqual(found, wanted)) {
    throw new Error(`${inspect(found)} where ${inspect(wanted)} is right`);
  }
}

// The error that `work` is rejected with.
export async function failure(work) {
  try {
    await work;
  } catch (error) {
    return error;
  }
  throw new Error("no error");
}

export const pause = (milliseconds) => new Promise((resolve) => setTimeout(resolve, milliseconds));

function say(line) {
  process.stdout.write(`${line}\n`);
}

// Ends the program, whatever else is under way.
function fail(where, error) {
  console.error(error);
  process.stdout.write(`failed ${where}: ${String(error).replaceAll("\n", " ")}\n`, () => process.exit(1));
}
