// Drizzle on node-postgres.

import { and, count, eq, gt, sql } from "drizzle-orm";
import { drizzle } from "drizzle-orm/node-postgres";
import { integer, pgTable, text } from "drizzle-orm/pg-core";
import pg from "pg";
import { BIG_ROWS, BIG_VALUE, CLIENT, POOL_SIZE, URL, expect, failure, run } from "./contract.mjs";

const pool = new pg.Pool({ connectionString: URL, max: POOL_SIZE, idleTimeoutMillis: 0 });
pool.on("error", () => {});
const db = drizzle(pool);

const t = pgTable("t", { id: integer("id").primaryKey() });
const clientRows = pgTable("client_rows", { client: text("client"), id: integer("id"), note: text("note") });

async function query() {
  const row = await db.execute(
    sql`SELECT ${41}::int + 1 AS number, ${"é€"}::text AS text, ${0.5}::float8 AS half, ${null}::text AS nothing`,
  );
  expect({ ...row.rows[0] }, { number: 42, text: "é€", half: 0.5, nothing: null });
  expect(await db.select({ n: count() }).from(t).where(gt(t.id, 90)), [{ n: 10 }]);
}

async function prepared() {
  const client = await pool.connect();
  const one = drizzle(client);
  const byId = one.select().from(t).where(eq(t.id, sql.placeholder("id"))).prepare("by id");
  for (let id = 1; id <= 8; id += 1) {
    expect(await byId.execute({ id }), [{ id }]);
  }
  const names = await one.execute("SELECT count(*)::int AS n FROM pg_prepared_statements WHERE name = 'by id'");
  expect(names.rows[0].n, 1);
  client.release();
}

async function transaction() {
  const insert = (db, id) => db.insert(clientRows).values({ client: CLIENT, id, note: "transaction" });
  await db.transaction((tx) => insert(tx, -1));
  const rolledBack = db.transaction(async (tx) => {
    await insert(tx, -2);
    tx.rollback();
  });
  await failure(rolledBack);
  const mine = and(eq(clientRows.client, CLIENT), eq(clientRows.note, "transaction"));
  expect(await db.select({ id: clientRows.id }).from(clientRows).where(mine), [{ id: -1 }]);
}

async function error() {
  expect((await failure(db.insert(t).values({ id: 1 }))).cause.code, "23505");
  expect((await failure(db.execute("SELECT 1 FROM missing"))).cause.code, "42P01");
}

async function big() {
  const { rows } = await db.execute(sql`SELECT generate_series(1, ${BIG_ROWS}::int) AS id`);
  expect([rows.length, rows.at(-1).id], [BIG_ROWS, BIG_ROWS]);
  const value = await db.execute(sql`SELECT repeat('x', ${BIG_VALUE}::int) AS value`);
  expect(value.rows[0].value.length, BIG_VALUE);
}

async function ended() {
  const { cause } = await failure(db.execute("SELECT pg_terminate_backend(pg_backend_pid())"));
  expect(cause.code, "57P01");
  expect((await db.execute("SELECT 1 AS one")).rows[0].one, 1);
}

await run(
  { query, prepared, transaction, error, big, ended },
  {
    async with(during) {
      const client = await pool.connect();
      const one = drizzle(client);
      await during(async (text) => Object.values((await one.execute(text)).rows[0])[0]);
      client.release();
    },
    close: () => pool.end(),
  },
);
