local fake = require "spec.unit.cluster_fake"
local backup = require "symphony.cluster.backup"
local crypto = require "sym.crypto"
local errors = require "symphony.errors"
local json = require "symphony.json"
local kv = require "symphony.cluster.kv"
local restore = require "symphony.cluster.restore"
local state = require "symphony.cluster.state"

local sha256 = crypto.sha256
local function hash(text) return crypto.hex(sha256(text)) end

local function raises(code, fn, ...)
  local ok, err = pcall(fn, ...)
  assert.is_false(ok)
  assert.is_true(errors.is(err), tostring(err))
  assert.equal(code, err.code)
  return err.message
end

describe("kv.parse_txn", function()
  it("reads every form of compare and op", function()
    local txn = kv.parse_txn { compare = { { key = "a", value = "1" }, { key = "b", absent = true },
      { key = "c", mod_revision = 7 }, { key = "d", create_revision = 8 }, { prefix = "p/", revision = 9 },
      { prefix = "", count = 0 }, { key_base64 = "/w==", absent = true } },
      ops = { { put = "a", value = "2" }, { delete = "b" }, { put_base64 = "/w==", value_base64 = "AAE=" } } }
    assert.same({ { key = "/kv/a", value = "1" }, { key = "/kv/b", absent = true }, { key = "/kv/c", mod_revision = 7 },
      { key = "/kv/d", create_revision = 8 }, { prefix = "/kv/p/", revision = 9 }, { prefix = "/kv/", count = 0 },
      { key = "/kv/\255", absent = true } }, txn.compare)
    assert.same({ { put = "/kv/a", value = "2" }, { delete = "/kv/b" }, { put = "/kv/\255", value = "\0\1" } }, txn.ops)
    assert.same({ compare = {}, ops = {} }, kv.parse_txn { ops = json.array {}, compare = json.null })
  end)

  it("refuses what is none, saying where", function()
    for _, doc in ipairs { 7, "x", {}, json.array {}, { ops = 1 }, { ops = { 1 } }, { ops = { {} } },
      { ops = { { put = 1 } } },
      { ops = { { put = "a" } } }, { ops = { { put = "a", delete = "b" } } }, { ops = { { put = "", value = "" } } },
      { ops = { { put = "a\0", value = "" } } }, { ops = { x = 1 } }, { compare = { {} } },
      { compare = { { key = "a" } } }, { compare = { { key = "a", absent = false } } },
      { compare = { { key = "a", absent = true, value = "" } } }, { compare = { { key = "a", mod_revision = -1 } } },
      { compare = { { key = "a", mod_revision = 1.5 } } }, { compare = { { prefix = "a" } } },
      { compare = { { prefix = "a", count = 1, revision = 1 } } }, { compare = { { prefix = 7, count = 1 } } },
      { ops = { { put = "a", value_base64 = "!" } } }, json.null } do
      raises("invalid", kv.parse_txn, doc)
    end
    assert.truthy(raises("invalid", kv.parse_txn, { ops = { { delete = "a" }, { put = 1 } } }):find("ops[2]", 1, true))
  end)

  it("keeps the limits", function()
    local function ops(n, size)
      local list = {}
      for i = 1, n do list[i] = { put = "k" .. i, value = ("x"):rep(size) } end
      return { ops = list }
    end
    assert.equal(128, #kv.parse_txn(ops(128, 1)).ops)
    raises("too_big", kv.parse_txn, ops(129, 1))
    kv.parse_txn(ops(2, 700000))
    raises("too_big", kv.parse_txn, ops(2, 900000))
    raises("too_big", kv.parse_txn, ops(1, (1 << 20) + 1))
    kv.parse_txn { ops = { { delete = ("k"):rep(1024) } } }
    raises("too_big", kv.parse_txn, { ops = { { delete = ("k"):rep(1025) } } })
  end)

  it("tells which compare did not hold", function()
    assert.same({ revision = 7 }, kv.answer { status = "applied", revision = 7, repeated = false })
    assert.truthy(raises("conflict", kv.answer, { status = "conflict", failed = 2 }):find("compare 2"))
  end)
end)

local function sample(n)
  local entries = {}
  for i = 1, n do entries[i] = { key = ("/kv/%03d"):format(i), value = i % 7 == 0 and "\255\0" .. i or "v" .. i,
    revision = i } end
  return entries
end
local header = { cluster_id = "0c", revision = 9, keys = 20, created = 1 }

local function file(entries, h)
  local head = {}
  for k, v in pairs(h or header) do head[k] = v end
  head.keys = h and h.keys or #entries
  return backup.file(head, entries, sha256)
end

describe("a backup's file", function()
  it("gives back what was put in", function()
    local text = file(sample(20))
    local head, entries, digest = backup.parse(text, sha256)
    assert.equal("0c", head.cluster_id)
    assert.same(sample(20), entries)
    assert.equal(64, #digest)
    assert.truthy(backup.parse(file({}), sha256))
  end)

  it("is refused when anything in it has changed", function()
    local text = file(sample(20))
    math.randomseed(3)
    for _ = 1, 300 do
      local at = math.random(#text)
      local changed = text:sub(1, at - 1) .. string.char((text:byte(at) + math.random(255)) % 256) .. text:sub(at + 1)
      local ok, err = backup.parse(changed, sha256)
      assert.is_nil(ok)
      assert.is_true(err.code == "corrupt" or err.code == "invalid")
    end
    for at = 0, #text - 1, 13 do assert.is_nil(backup.parse(text:sub(1, at), sha256)) end
    assert.is_nil(backup.parse(text .. "x", sha256))
    assert.is_nil(backup.parse(text .. text, sha256))
    assert.is_nil(backup.parse("", sha256))
  end)

  it("takes no longer to refuse what was made to be slow", function()
    local began = os.clock()
    assert.is_nil(backup.collect(("{"):rep(1 << 19)))
    assert.is_nil(backup.parse(("{\n"):rep(1 << 19), sha256))
    assert.is_true(os.clock() - began < 10, os.clock() - began .. " s of CPU")
  end)

  it("may hold only what a backup holds, in order", function()
    assert.is_nil(backup.parse(file { { key = "/secret/ca", value = "x", revision = 1 } }, sha256))
    assert.is_nil(backup.parse(file { { key = "/node/x", value = "x", revision = 1 } }, sha256))
    assert.is_nil(backup.parse(file { { key = "/kv/b", value = "x", revision = 1 }, { key = "/kv/a", value = "x",
      revision = 1 } }, sha256))
    assert.is_nil(backup.parse(file(sample(3), { cluster_id = "0c", revision = 1, keys = 4 }), sha256))
    assert.is_nil(backup.parse(file(sample(3), { revision = 1, keys = 3 }), sha256))
  end)

  it("is put together from a stream in which keys change meanwhile", function()
    local stream = table.concat {
      backup.header_line { cluster_id = "0c" },
      backup.put_line("/kv/a", "old", 1), backup.put_line("/kv/b", "1", 2), backup.put_line("/kv/gone", "1", 3),
      backup.put_line("/kv/a", "new", 11), backup.delete_line("/kv/gone", 12), backup.delete_line("/kv/b", 13),
      backup.put_line("/kv/b", "again", 14), backup.put_line("/kv/late", "x", 15), backup.put_line("/kv/late", "x", 15),
      backup.delete_line("/kv/never", 16), backup.end_line(16),
    }
    local head, entries = backup.collect(stream)
    assert.equal(16, head.revision)
    assert.same({ { key = "/kv/a", value = "new", revision = 11 }, { key = "/kv/b", value = "again", revision = 14 },
      { key = "/kv/late", value = "x", revision = 15 } }, entries)
    for _, bad in ipairs { "", stream:sub(1, -20), stream .. "{}\n", "{}\n" .. stream, (stream:gsub("11", "\"x\"")) } do
      local ok, err = backup.collect(bad)
      assert.is_nil(ok, bad)
      assert.equal("corrupt", err.code)
    end
  end)
end)

describe("restore.diff", function()
  local function list(entries)
    local i = 0
    return function()
      i = i + 1
      return entries[i]
    end
  end
  local function all(iterator)
    local out = {}
    for item in iterator do out[#out + 1] = item end
    return out
  end

  it("yields exactly what differs", function()
    for seed = 1, 50 do
      math.randomseed(seed)
      local wanted, there, want, have = {}, {}, {}, {}
      for i = 1, 40 do
        local key = ("/kv/%02d"):format(i)
        if math.random(2) == 1 then
          want[key] = "v" .. math.random(2)
          wanted[#wanted + 1] = { key = key, value = want[key] }
        end
        if math.random(2) == 1 then
          have[key] = "v" .. math.random(2)
          there[#there + 1] = { key = key, hash = hash(have[key]) }
        end
      end
      local n = 0
      for change in restore.diff(wanted, list(there), hash) do
        assert.not_equal(have[change.key], change.value)
        have[change.key] = change.value
        n = n + 1
      end
      assert.same(want, have)
      assert.is_true(n <= 40)
    end
  end)

  it("is cut into batches that fit a txn", function()
    local changes = {}
    for i = 1, 500 do changes[i] = { key = "k" .. i, value = i % 100 == 0 and ("x"):rep(1 << 20) or "v" } end
    changes[501] = { key = "gone" }
    local n = 0
    for batch in restore.batches(list(changes)) do
      local size = 0
      for _, change in ipairs(batch) do
        n = n + 1
        assert.equal(changes[n], change)
        size = size + #change.key + #(change.value or "")
      end
      assert.is_true(#batch <= restore.OPS_MAX and (#batch == 1 or size <= restore.BYTES_MAX))
    end
    assert.equal(501, n)
    assert.same({}, all(restore.batches(list {})))
  end)

  it("leaves tokens and assignments of another cluster out", function()
    local entries = { { key = "/assign/x" }, { key = "/kv/a" }, { key = "/token/t" } }
    assert.same(entries, restore.select(entries, false))
    assert.same({ { key = "/kv/a" } }, restore.select(entries, true))
    assert.is_false(restore.check_cluster("a", "a"))
    assert.is_true(restore.check_cluster("a", "b", true))
    local ok, err = restore.check_cluster("a", "b")
    assert.is_nil(ok)
    assert.truthy(err.hint:find("--force", 1, true))
  end)
end)

describe("a restore", function()
  before_each(function() fake.reset() end)

  -- What the client does, against the daemon's functions.
  local function there(prefixes)
    local rows = {}
    for _, prefix in ipairs(prefixes) do
      local after, page
      repeat
        page = json.decode(json.encode(restore.page(prefix, after, 7)))
        for _, row in ipairs(page.keys) do
          rows[#rows + 1] = { key = row.k, hash = row.h }
          after = row.k
        end
      until not page.more
    end
    local i = 0
    return function()
      i = i + 1
      return rows[i]
    end
  end

  local function run(entries, mark, steps)
    local begun = restore.begin(mark)
    local n = 0
    for batch in restore.batches(restore.diff(restore.select(entries, begun.foreign), there(begun.prefixes), hash)) do
      n = n + 1
      if steps and n > steps then return begun end
      restore.apply(json.decode(json.encode { digest = mark.digest, ops = restore.encode(batch) }))
    end
    restore.finish { digest = mark.digest }
    return begun
  end

  local function content()
    local out = {}
    for _, row in ipairs(state.list_raw("/kv/")) do out[row.key] = row.value end
    return out
  end

  it("brings the keys to what the backup holds, and only grows the revision", fake.task(function()
    local made = fake.make()
    local entries = {}
    for i = 1, 300 do entries[i] = { key = ("/kv/%03d"):format(i), value = "v" .. i } end
    for i = 100, 400 do fake.apply { ops = { state.put(("/kv/%03d"):format(i),
      i % 2 == 0 and "v" .. i or "other") } } end
    local members = #state.list_raw("/node/")
    local mark = { digest = ("d"):rep(64), source = "file", cluster_id = made.cluster_id }
    local before = fake.revision
    run(entries, mark, 1)
    assert.equal("file", state.get("/cluster/restoring").source)
    assert.equal(1, state.cluster().epoch)
    assert.is_true(restore.begin(mark).resumed)
    assert.is_true(run(entries, mark).resumed)
    local now = content()
    for _, row in ipairs(entries) do
      assert.equal(row.value, now[row.key])
      now[row.key] = nil
    end
    assert.same({}, now)
    assert.is_nil(state.get("/cluster/restoring"))
    assert.equal(2, state.cluster().epoch)
    assert.is_true(fake.revision > before)
    assert.equal(members, #state.list_raw("/node/"))
    assert.is_string(state.text("/secret/ca"))
    -- The tokens were not in it.
    assert.equal(0, #state.list_raw("/token/"))
    -- Again: nothing to write but the mark and its end.
    before = fake.revision
    run(entries, mark)
    assert.equal(before + 2, fake.revision)
  end))

  it("touches nothing else", fake.task(function()
    local made = fake.make()
    local mark = { digest = ("d"):rep(64), source = "file", cluster_id = made.cluster_id }
    raises("conflict", restore.apply, { digest = mark.digest, ops = { { k = "/kv/a", v = "1" } } })
    restore.begin(mark)
    for _, key in ipairs { "/secret/ca", "/cluster", "/node/x", "/raft/1", "/cluster/restoring" } do
      raises("denied", restore.apply, { digest = mark.digest, ops = { { k = key, v = "1" } } })
      raises("denied", restore.page, key)
    end
    raises("invalid", restore.apply, { digest = mark.digest, ops = {} })
    raises("conflict", restore.apply, { digest = "other", ops = { { k = "/kv/a", v = "1" } } })
    raises("conflict", restore.finish, { digest = "other" })
    raises("invalid", restore.begin, {})
    raises("conflict", restore.begin, { digest = "x", source = "y", cluster_id = "0other" })
    local foreign = restore.begin { digest = "x", source = "y", cluster_id = "0other", force = true }
    assert.is_true(foreign.foreign)
    raises("denied", restore.apply, { digest = "x", ops = { { k = "/token/a", v = "1" } } })
  end))
end)

describe("GET /v1/backup", function()
  before_each(function() fake.reset() end)

  it("streams one revision while keys change", fake.task(function()
    local router = require "symphony.api.router"
    router.reset()
    require("symphony.api.routes_backup").routes(router)
    fake.make()
    for i = 1, 200 do fake.apply { ops = { state.put(("/kv/%03d"):format(i), "v") } } end
    local req = fake.request("GET", "/v1/backup")
    local write, n = req.write, 0
    function req:write(data, cb)
      n = n + 1
      if n == 2 then
        fake.apply { ops = { state.put("/kv/001", "changed"), state.delete("/kv/200"), state.put("/kv/0001", "new") } }
      end
      return write(self, data, cb)
    end
    router.dispatch(req)
    for _ = 1, 200 do
      if req.finished or req.aborted then break end
      require("symphony.async").sleep(1)
    end
    assert.is_true(req.finished)
    local head, entries = backup.collect(table.concat(req.chunks))
    assert(head, entries)
    assert.equal(fake.revision, head.revision)
    local want = {}
    for _, prefix in ipairs(backup.PREFIXES) do
      for _, row in ipairs(state.list_raw(prefix)) do want[row.key] = row.value end
    end
    local got = {}
    for _, row in ipairs(entries) do got[row.key] = row.value end
    assert.same(want, got)
    assert.is_falsy(table.concat(req.chunks):find("secret", 1, true))
  end))

  it("is for the control socket only", function()
    local router = require "symphony.api.router"
    router.reset()
    require("symphony.api.routes_backup").routes(router)
    local req = fake.request("GET", "/v1/backup", { peer = { tls = true, addr = "10.0.0.1" } })
    router.dispatch(req)
    fake.loop()
    assert.equal(401, req.status)
  end)
end)
