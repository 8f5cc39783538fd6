local fake = require "spec.unit.cluster_fake"
local async = require "symphony.async"
local crypto = require "sym.crypto"
local gossip = require "symphony.cluster.gossip"
local identity = require "symphony.cluster.identity"
local init = require "symphony.cluster.init"
local json = require "symphony.json"
local leave = require "symphony.cluster.leave"
local lifecycle = require "symphony.cluster.lifecycle"
local members = require "symphony.cluster.members"
local pki = require "symphony.cluster.pki"
local recover = require "symphony.cluster.recover"
local resuming = require "symphony.cluster.resuming"
local state = require "symphony.cluster.state"
local token = require "symphony.cluster.token"
local whereabouts = require "symphony.cluster.whereabouts"

-- Lets the tasks that have been started run.
local function settle() async.sleep(1) end

local function saved() return json.decode(fake.files["/dir/key.json"]) end

local function nothing_left()
  assert.is_nil(fake.files["/dir/key.json"])
  assert.is_nil(fake.folders["/dir/raft"])
  assert.is_nil(identity.me)
  assert.is_false(fake.started)
end

local add_member = fake.add_member

-- The daemon ends and starts again, with what is on disk.
local function restart()
  fake.quiet()
  fake.started, identity.me, identity.tls, identity.trouble = false, nil, nil, nil
  lifecycle.start()
  settle()
end

local function wait_for(check)
  for _ = 1, 1000 do
    if check() then return end
    async.sleep(5)
  end
  error("it never came true", 2)
end

-- What this manager's gossip says of its raft address.
local function said_by_gossip()
  wait_for(function() return fake.gossip ~= nil end)
  local said = gossip.decode_meta(fake.gossip.told.meta or fake.gossip.options.meta).raft or {}
  return { said.id, said.moves, said.address }
end

local function logged(word)
  return table.concat(fake.logged, "\n"):find(word, 1, true) ~= nil
end

describe("identity.parse", function()
  local sound = { format = 1, node_id = "n", raft_node_id = 1, cluster_id = "c", role = "manager", name = "a",
    starts = 3,
    folder = "f", advertise = { raft = "a:1", remote = "a:2", gossip = "a:3" }, managers = json.array { "a:2" },
    removed = false }

  it("reads what was saved", function()
    assert.same(sound, identity.parse(json.encode(sound)))
  end)

  it("refuses what is damaged, with a reason", function()
    local text = json.encode(sound)
    for i = 0, #text - 1, 7 do assert.is_nil(identity.parse(text:sub(1, i))) end
    for key in pairs { node_id = 1, raft_node_id = 1, cluster_id = 1, folder = 1, starts = 1, advertise = 1,
      managers = 1 } do
      for _, wrong in ipairs { json.null, "x", 1.5, {}, -1 } do
        local doc = json.decode(text)
        doc[key] = wrong
        local damaged = json.encode(doc)
        local ok, why = identity.parse(damaged)
        if damaged ~= text and not (ok and type(sound[key]) == type(wrong) and type(wrong) ~= "number") then
          assert.is_nil(ok, damaged)
          assert.is_string(why)
        end
      end
    end
    assert.is_nil(identity.parse(("x"):rep(100000)))
    assert.is_nil(identity.parse("\255\254"))
    sound.phase = "nonsense"
    assert.is_nil(identity.parse(json.encode(sound)))
    sound.phase = nil
  end)

  it("refuses what the daemon could not use or write again", function()
    for field, wrong in pairs { removed = "yes", reason = { 1 }, phase = true, starts = 1 << 53, raft_node_id = 1 << 53,
      managers = { first = "a:2" } } do
      local doc = json.decode(json.encode(sound))
      doc[field] = wrong
      local ok, why = identity.parse(json.encode(doc))
      assert.is_nil(ok, field)
      assert.is_string(why)
    end
    assert.is_nil(identity.parse((json.encode(sound):gsub('"name":"a"', '%0,"more":1e999'))))
    local function with(fields)
      local doc = json.decode(json.encode(sound))
      for name, value in pairs(fields) do doc[name] = value end
      return json.encode(doc)
    end
    assert.truthy(identity.parse(with { gossip_start = 7, trust = 2, phase = "init" }))
    local moved = { id = 2, moves = 1, address = "a:4" }
    assert.truthy(identity.parse(with { moves = 3, moved = json.array { moved } }))
    for _, wrong in ipairs { { first = moved }, json.array { 7 }, json.array { { id = 2, moves = 1 } } } do
      assert.is_nil(identity.parse(with { moved = wrong }))
    end
    for _, wrong in ipairs { 0, -1, 1.5, 1 << 53, "7" } do
      assert.is_nil(identity.parse(with { moves = wrong }))
      assert.is_nil(identity.parse(with { moved = json.array { { id = wrong, moves = 1, address = "a:4" } } }))
      assert.is_nil(identity.parse(with { moved = json.array { { id = 2, moves = wrong, address = "a:4" } } }))
      assert.is_nil(identity.parse(with { gossip_start = wrong }))
      assert.is_nil(identity.parse(with { trust = wrong }))
    end
    -- A worker is neither made nor recovered.
    local worker = { role = "worker", raft_node_id = false }
    for _, phase in ipairs { "init", "recover" } do
      worker.phase = phase
      assert.is_nil(identity.parse((with(worker):gsub('"raft_node_id":false,', ""))))
    end
    worker.phase = "leave"
    assert.truthy(identity.parse((with(worker):gsub('"raft_node_id":false,', ""))))
  end)
end)

describe("identity.parse on hostile bytes", function()
  it("never raises, and what it takes has every field", function()
    math.randomseed(11)
    local text = json.encode { format = 1, node_id = "n", raft_node_id = 1, cluster_id = "c", role = "manager",
      name = "a",
      starts = 3, folder = "f", advertise = { raft = "a:1", remote = "a:2", gossip = "a:3" }, managers = { "a:2" },
      removed = false }
    for _ = 1, 5000 do
      local bytes = { text:byte(1, -1) }
      for _ = 1, math.random(3) do
        local at = math.random(#bytes)
        local what = math.random(3)
        if what == 1 then
          bytes[at] = math.random(0, 255)
        elseif what == 2 then
          table.remove(bytes, at)
        else
          table.insert(bytes, at, math.random(32, 126))
        end
      end
      local doc, why = identity.parse(string.char(table.unpack(bytes)))
      if doc then
        assert.equal("integer", math.type(doc.starts))
        assert.is_string(doc.advertise.raft)
      else
        assert.is_string(why)
      end
    end
  end)
end)

describe("init", function()
  before_each(function() fake.reset() end)

  it("makes the whole first state in one txn, and only then shows tokens", fake.task(function()
    local answer, more = fake.make { token_ttl = 3600, name = "first" }
    assert.same({ "cluster_id", "node_id", "raft_node_id", "tokens" }, (function()
      local keys = {}
      for k in pairs(answer) do keys[#keys + 1] = k end
      table.sort(keys)
      return keys
    end)())
    assert.equal(1, fake.revision)
    assert.equal("127.0.0.1:27242", more.remote)
    local cluster = state.cluster()
    assert.same({ answer.cluster_id, 1, false }, { cluster.id, cluster.epoch, cluster.dev })
    assert.equal("2", state.text("/cluster/next_raft_id"))
    assert.equal("1", state.text("/cluster/format"))
    assert.equal(answer.node_id, state.text("/raft/1"))
    assert.equal(answer.node_id, state.text("/name/first"))
    local ca = crypto.cert_info(cluster.ca)
    for _, role in ipairs { "manager", "worker" } do
      local t = token.parse(answer.tokens[role])
      assert.equal(ca.digest, crypto.hex(t.ca))
      local record = state.get("/token/" .. token.hash(t.secret))
      assert.same({ role, fake.now + 3600 }, { record.role, record.expires })
    end
    assert.is_nil(table.concat(fake.logged, "\n"):find(answer.tokens.manager:sub(-25), 1, true))
    local doc = saved()
    assert.is_nil(doc.phase)
    assert.same({ answer.node_id, 1, 1 }, { doc.node_id, doc.raft_node_id, doc.starts })
    assert.is_true(fake.starts[1].bootstrap)
    assert.is_true(crypto.cert_info(fake.files["/dir/tls/node.crt"]).is_server)
  end))

  it("is refused by a member and by a removed one", fake.task(function()
    fake.make()
    local before = fake.files["/dir/key.json"]
    local ok, err = init.run {}
    assert.is_nil(ok)
    assert.equal("exists", err.code)
    assert.equal(before, fake.files["/dir/key.json"])
    identity.me.removed = true
    ok, err = init.run {}
    assert.is_nil(ok)
    assert.truthy(err.hint:find("leave"))
  end))

  it("leaves nothing when it fails", fake.task(function()
    fake.start_error = { code = "in_use", message = "raft port 15760: address already in use" }
    local ok, err = init.run { token_ttl = 60 }
    assert.is_nil(ok)
    assert.equal("in_use", err.code)
    assert.is_string(err.hint)
    nothing_left()
    fake.start_error, fake.submit_error = nil, { code = "no_space", message = "full" }
    ok, err = init.run { token_ttl = 60 }
    assert.is_nil(ok)
    assert.equal("no_space", err.code)
    nothing_left()
    fake.submit_error, fake.write_fails = nil, true
    ok, err = init.run { token_ttl = 60 }
    assert.is_nil(ok)
    assert.equal("no_space", err.code)
    fake.write_fails = false
    nothing_left()
    fake.make()
  end))

  -- Killed at each write: what is on disk then is what the next daemon finds.
  it("can be said again wherever it was killed", fake.task(function()
    local sys = require "sym.sys"
    local write = sys.write_file
    for step = 1, 8 do
      fake.quiet()
      fake.reset()
      local n = 0
      sys.write_file = function(...)
        n = n + 1
        if n == step then error("killed", 0) end
        return write(...)
      end
      local key_json, folders, files
      -- What a kill leaves: everything written so far, nothing cleaned up.
      local remove_tree, remove = sys.remove_tree, sys.remove
      sys.remove_tree = function() return true end
      sys.remove = function() return true end
      local ok = pcall(fake.make)
      sys.remove_tree, sys.remove, sys.write_file = remove_tree, remove, write
      if ok then break end
      key_json, folders, files = fake.files["/dir/key.json"], next(fake.folders), next(fake.files)
      restart()
      assert.equal(0, #fake.quits, step)
      if identity.me then
        assert.equal("init", identity.me.phase, step)
        local member, err = identity.member()
        assert.is_nil(member)
        assert.equal("no_cluster", err.code)
      end
      local answer = fake.make { token_ttl = 60 }
      assert.is_string(answer.cluster_id)
      assert.is_nil(saved().phase)
      assert.truthy(key_json or folders or files or step == 1)
    end
  end))

  it("keeps development mode on the loopback", fake.task(function()
    fake.options.advertise_addr = "10.0.0.1"
    local ok, err = init.run { dev = true }
    assert.is_nil(ok)
    assert.equal("invalid", err.code)
    nothing_left()
    fake.options.advertise_addr = nil
    local _, more = fake.make { dev = true }
    assert.equal("127.0.0.1:27242", more.remote)
    assert.is_true(state.cluster().dev)
  end))
end)

describe("the start of a daemon", function()
  before_each(function() fake.reset() end)

  it("resumes a member, counting its starts before raft runs", fake.task(function()
    fake.make()
    restart()
    assert.equal(2, saved().starts)
    assert.equal(2, fake.starts[2].starts)
    assert.is_false(fake.starts[2].bootstrap)
    assert.is_true(fake.started)
    assert.equal(0, #fake.quits)
  end))

  it("waits when there is nothing", fake.task(function()
    lifecycle.start()
    settle()
    assert.is_false(fake.started)
    assert.equal(0, #fake.quits)
    local ok, err = identity.member()
    assert.is_nil(ok)
    assert.equal("no_cluster", err.code)
  end))

  it("ends with the name of the file when something is damaged", fake.task(function()
    fake.make()
    local sound = {}
    for k, v in pairs(fake.files) do sound[k] = v end
    for _, name in ipairs { "key.json", "tls/node.key", "tls/node.crt", "tls/ca.crt" } do
      for _, text in ipairs { "", "nonsense", sound["/dir/" .. name]:sub(1, #sound["/dir/" .. name] // 2) } do
        fake.files["/dir/" .. name] = text
        for k in pairs(fake.logged) do fake.logged[k] = nil end
        restart()
        assert.is_false(fake.started)
        assert.equal(1, table.remove(fake.quits), name)
        assert.is_true(logged("/dir/" .. name), name .. table.concat(fake.logged))
        assert.equal(text, fake.files["/dir/" .. name])
        fake.files["/dir/" .. name] = sound["/dir/" .. name]
      end
    end
    fake.files["/dir/tls/node.crt"] = nil
    restart()
    assert.equal(1, table.remove(fake.quits))
    fake.files["/dir/tls/node.crt"] = sound["/dir/tls/node.crt"]
    restart()
    assert.is_true(fake.started)
  end))

  it("refuses a certificate of another key, CA or node", fake.task(function()
    fake.make()
    local doc, info = identity.me, crypto.cert_info(fake.files["/dir/tls/node.crt"])
    local other_key = pki.new_ca("x", fake.now)
    local _, ca = pki.new_ca(doc.cluster_id, fake.now)
    local cases = {
      crypto.cert_sign({ name = info.issuer }, ca, crypto.csr(other_key, "x"), { cn = doc.node_id, ou = "manager",
        o = doc.cluster_id, not_before = 0, not_after = 1 }),
      crypto.cert_sign(other_key, ca, "CSR " .. info.key .. " x", { cn = doc.node_id, ou = "manager",
        o = doc.cluster_id,
        not_before = 0, not_after = 1 }),
      crypto.cert_sign({ name = info.issuer }, ca, "CSR " .. info.key .. " x", { cn = "0other", ou = "manager",
        o = doc.cluster_id, not_before = 0, not_after = 1, raft_id = 1 }),
      crypto.cert_sign({ name = info.issuer }, ca, "CSR " .. info.key .. " x", { cn = doc.node_id, ou = "manager",
        o = doc.cluster_id, not_before = 0, not_after = 1, raft_id = 2 }),
      crypto.cert_sign({ name = info.issuer }, ca, "CSR " .. info.key .. " x", { cn = doc.node_id, ou = "manager",
        o = doc.cluster_id, not_before = 0, not_after = 1 }),
    }
    assert.equal(1, info.raft_id)
    for _, cert in ipairs(cases) do
      fake.files["/dir/tls/node.crt"] = cert
      local ok, err = identity.load_tls(doc)
      assert.is_nil(ok)
      assert.equal("corrupt", err.code)
      assert.truthy(err.message:find("node.crt", 1, true))
    end
  end))

  it("refuses a folder that was copied or put back, by name", fake.task(function()
    fake.make()
    local starts = saved().starts
    fake.folders["/dir/raft"] = "another machine's"
    restart()
    assert.is_false(fake.started)
    assert.equal(1, #fake.quits)
    assert.is_true(logged("/dir/raft"))
    assert.equal(starts, saved().starts)
    fake.folders["/dir/raft"] = nil
    restart()
    assert.is_false(fake.started)
    assert.equal(2, #fake.quits)
  end))

  it("ends when the node cannot start, and says what to do", fake.task(function()
    fake.make()
    fake.start_error = { code = "in_use", message = "raft port 15760: address already in use" }
    restart()
    assert.equal(1, #fake.quits)
    assert.is_true(logged("15760"))
    assert.is_true(logged("--listen"))
  end))

  it("keeps a removed manager from serving", fake.task(function()
    fake.make()
    fake.hooks.removed(nil, "not_found", "raft id 1 has been removed")
    settle()
    assert.is_false(fake.started)
    assert.is_true(saved().removed)
    local ok, err = identity.member()
    assert.is_nil(ok)
    assert.equal("removed", err.code)
    assert.truthy((err.message .. err.hint):find("remove"))
    assert.truthy(err.hint:find("manager leave"))
    restart()
    assert.is_false(fake.started)
    assert.equal(0, #fake.quits)
    assert.equal("removed", select(2, identity.member()).code)
    assert(leave.run {})
    nothing_left()
    fake.make()
  end))

  it("ends a manager whose folder is an older copy, for good", fake.task(function()
    fake.make()
    fake.hooks.removed(nil, "conflict", "a peer has seen start 7, this is 3")
    settle()
    assert.equal(1, #fake.quits)
    assert.is_true(saved().removed)
    restart()
    assert.is_false(fake.started)
  end))

  it("learns of its removal from its own state, too", fake.task(function()
    local made = fake.make()
    fake.apply { ops = { state.delete("/node/" .. made.node_id) } }
    settle()
    assert.is_true(saved().removed)
    assert.is_false(fake.started)
  end))

  it("tells the state its new address", fake.task(function()
    local made = fake.make()
    fake.quiet()
    fake.options.remote_port = 30000
    local soon_ms = lifecycle.soon_ms
    local _ <close> = setmetatable({}, { __close = function() lifecycle.soon_ms = soon_ms end })
    lifecycle.soon_ms = 1
    restart()
    assert.equal("127.0.0.1:30000", saved().advertise.remote)
    wait_for(function() return state.get("/node/" .. made.node_id).remote_address == "127.0.0.1:30000" end)
  end))

  it("says that its raft address is another one, numbered, raft and the state", fake.task(function()
    local made = fake.make()
    local key = "/node/" .. made.node_id
    assert.is_nil(fake.starts[1].raft_moves)
    fake.options.raft_port = 30000
    restart()
    assert.is_true(fake.started)
    assert.is_true(logged("is 127.0.0.1:30000 now, and was 127.0.0.1:15760"))
    assert.same({ "127.0.0.1:30000", 1 }, { saved().advertise.raft, saved().moves })
    assert.same({ "127.0.0.1:30000", 1 }, { fake.starts[2].raft_address, fake.starts[2].raft_moves })
    wait_for(function() return state.get(key).raft_address == "127.0.0.1:30000" end)
    assert.equal(1, state.get(key).raft_moves)
    local all = state.list("/event/")
    local event = all[#all].value
    assert.equal("node.updated", event.kind)
    assert.equal(made.node_id, event.node_id)
    assert.truthy(event.message:find("raft address 127.0.0.1:30000", 1, true), event.message)
    assert.same({ 1, 1, "127.0.0.1:30000" }, said_by_gossip())
    -- The same again is no move; nor is a remote port.
    fake.options.remote_port = 30001
    restart()
    assert.equal(1, saved().moves)
    assert.equal(1, fake.starts[3].raft_moves)
    fake.options.raft_port, fake.options.advertise_addr = 15760, nil
    restart()
    assert.same({ "127.0.0.1:15760", 2 }, { saved().advertise.raft, saved().moves })
  end))

  it("tries to tell the state until it can", fake.task(function()
    local made = fake.make()
    fake.options.raft_port = 30000
    fake.read_error = { code = "no_quorum", message = "no quorum" }
    restart()
    wait_for(function() return fake.reads > 3 end)
    assert.equal("127.0.0.1:15760", state.get("/node/" .. made.node_id).raft_address)
    fake.read_error = nil
    wait_for(function() return state.get("/node/" .. made.node_id).raft_address == "127.0.0.1:30000" end)
  end))

  it("says so when it has moved before anybody had taken it in", fake.task(function()
    local made = fake.make()
    fake.options.raft_port = 30000
    fake.kvs["/node/" .. made.node_id] = nil
    fake.status = nil -- a follower, and no member of anything
    restart()
    wait_for(function() return logged("has not taken this manager in yet") end)
  end))

  it("meets the others where a person says that they are", fake.task(function()
    local failure = select(2, whereabouts.meet("10.0.0.1"))
    assert.equal("no_cluster", failure.code)
    fake.make()
    assert.equal("invalid", select(2, whereabouts.meet("10.0.0.1:x")).code)
    wait_for(function() return fake.gossip ~= nil end)
    local asked = {}
    fake.answer = function(opts)
      asked[#asked + 1] = ("%s:%d %s"):format(opts.host, opts.port, opts.role)
      if opts.role == "manager" then return { code = "denied", message = "its certificate is that of a worker" } end
      return nil, { status = 200, body = "{}", peer = { cn = "0worker" } }
    end
    assert.same({ at = "10.0.0.1:27242", leader = true }, (whereabouts.meet("10.0.0.1")))
    assert.same({ "10.0.0.1:27242 manager", "10.0.0.1:27242 worker" }, asked)
    fake.answer = function() return { code = "unreachable", message = "connection refused" } end
    assert.equal("unreachable", select(2, whereabouts.meet("10.0.0.2:1")).code)
    gossip.stop()
    assert.equal("state_unknown", select(2, whereabouts.meet("10.0.0.1")).code)
  end))

  it("is no copy of one that runs at its old address", fake.task(function()
    local made = fake.make()
    local asked
    local function answered_by(cn)
      fake.answer = function(opts)
        asked = opts
        if not cn then return { code = "unreachable", message = "connection refused" } end
        return nil, { status = 200, body = "{}", peer = { cn = cn } }
      end
    end
    fake.options.advertise_addr = "127.0.0.2"
    answered_by(made.node_id)
    restart()
    assert.is_false(fake.started)
    assert.equal(1, #fake.quits)
    assert.is_true(logged("is running at 127.0.0.1:27242: this folder is a copy"))
    assert.same({ "127.0.0.1", 27242, "GET" }, { asked.host, asked.port, asked.method })
    assert.same({ "127.0.0.1:15760" }, { saved().advertise.raft, saved().moves })
    answered_by("0another")
    restart()
    assert.is_true(fake.started)
    assert.equal("127.0.0.2:15760", saved().advertise.raft)
    fake.options.advertise_addr = "127.0.0.3"
    answered_by(nil)
    restart()
    assert.is_true(fake.started)
    assert.equal(2, saved().moves)
  end))

  it("follows its machine's address only if nobody chose one", fake.task(function()
    local here = "10.0.0.7"
    fake.options.advertise_addr, fake.options.bind_addr = nil, nil
    local sys = require "sym.sys"
    local default_address = sys.default_address
    local _ <close> = setmetatable({}, { __close = function() sys.default_address = default_address end })
    sys.default_address = function() return here end
    fake.answer = function() return { code = "unreachable", message = "connection refused" } end
    local made = fake.make()
    assert.equal("10.0.0.7:15760", saved().advertise.raft)
    -- As it starts, and as it runs.
    here = "10.0.0.8"
    restart()
    assert.same({ "10.0.0.8:15760", 1 }, { saved().advertise.raft, saved().moves })
    here = "10.0.0.9"
    lifecycle.look_after()
    assert.same({ "10.0.0.9:15760", 2 }, { saved().advertise.raft, saved().moves })
    assert.equal("1 10.0.0.9:15760 2", fake.located[#fake.located])
    assert.equal("10.0.0.9:27242", state.get("/node/" .. made.node_id).remote_address)
    here = "127.0.0.1" -- it has none
    lifecycle.look_after()
    assert.equal(2, saved().moves)
    -- Chosen.
    fake.options.advertise_addr = "10.0.0.9"
    here = "10.0.0.10"
    restart()
    lifecycle.look_after()
    assert.same({ "10.0.0.9:15760", 2 }, { saved().advertise.raft, saved().moves })
  end))

  it("stays on its machine in development mode", fake.task(function()
    fake.make { dev = true }
    fake.answer = function() return { code = "unreachable", message = "connection refused" } end
    fake.options.advertise_addr = "10.0.0.1"
    restart()
    assert.is_false(fake.started)
    assert.equal(1, #fake.quits)
    assert.is_true(logged("development mode"))
  end))

  it("tells raft where the others are that have moved", fake.task(function()
    fake.make()
    local two, three = add_member(2), add_member(3)
    assert.same({}, fake.located)
    two.raft_address, two.raft_moves = "10.0.0.2:1", 4
    fake.apply { ops = { state.put("/node/" .. two.node_id, two) } }
    assert.same({ "2 10.0.0.2:1 4" }, fake.located)
    assert.same(json.array { { id = 2, moves = 4, address = "10.0.0.2:1" } }, saved().moved)
    -- Also at the start, before anything is heard; also when the state is not there yet.
    fake.located[1] = nil
    local kvs = fake.kvs["/node/" .. two.node_id]
    fake.kvs["/node/" .. two.node_id] = nil
    restart()
    assert.equal("2 10.0.0.2:1 4", fake.located[1])
    fake.kvs["/node/" .. two.node_id] = kvs
    -- Of one that has gone nothing is kept, and what is kept goes before what is older.
    local older = { { value = { raft_node_id = 2, raft_moves = 3, raft_address = "x:1" } },
      { value = { raft_node_id = 1, raft_moves = 3, raft_address = "x:2" } } }
    local kept = { id = 2, moves = 4, address = "10.0.0.2:1" }
    assert.same(json.array { kept }, whereabouts.moved({ raft_node_id = 1, moved = { kept } }, older))
    assert.is_nil(whereabouts.moved({ raft_node_id = 1, moved = { kept } }, { older[2] }))
    -- What one says by gossip counts for itself only.
    for i = #fake.located, 1, -1 do fake.located[i] = nil end
    wait_for(function() return fake.gossip ~= nil end)
    local function heard(n, id)
      fake.gossip.fns.event(nil, "updated", { node_id = n.node_id, address = "10.0.0.3:3",
        meta = gossip.encode_meta { remote_port = 1, role = "manager", ring = 1, ring_use = 1, version = "1",
          raft = { id = id, moves = 2, address = "10.0.0.3:1" } } })
    end
    heard(three, 2)
    heard({ node_id = "0nobody" }, 3)
    assert.same({}, fake.located)
    heard(three, 3)
    assert.same({ "3 10.0.0.3:1 2" }, fake.located)
  end))

  it("looks for the others at every address that it knows", fake.task(function()
    fake.make()
    add_member(2)
    local w = { node_id = "0worker", name = "w", role = "worker", fingerprint = "fw", remote_address = "10.0.0.20:1",
      gossip_address = "10.0.0.20:2", labels = {} }
    local asked = {}
    fake.answer = function(opts)
      asked[#asked + 1] = ("%s:%s %s"):format(opts.host, opts.port, opts.role)
      if opts.host == "10.0.0.20" and opts.path == "/v1/gossip" then
        return nil, { status = 200, body = "{}", peer = { cn = "0worker" } }
      end
      return { code = "unreachable", message = "connection refused" }
    end
    fake.apply { ops = { state.put("/node/0worker", w) } }
    local doc = saved()
    doc.managers = json.array { "10.0.0.1:27242", "127.0.0.1:27242" }
    fake.files["/dir/key.json"] = json.encode(doc)
    fake.status.leader, fake.status.state = 0, "follower"
    local status = fake.status
    restart()
    fake.status = status
    wait_for(function() return #asked >= 3 end)
    local all = table.concat(asked, ", ")
    assert.truthy(all:find("10.0.0.1:27242 manager", 1, true), all)
    assert.truthy(all:find("10.0.0.20:1 worker", 1, true), all)
    assert.is_nil(all:find("127.0.0.1", 1, true), all)
  end))

  it("remembers where the others are", fake.task(function()
    fake.make()
    add_member(2)
    assert.same(json.array { "127.0.0.1:27242", "r:2" }, saved().managers)
  end))
end)

describe("resuming.verdict", function()
  it("knows what to do with every key.json", function()
    assert.equal("idle", resuming.verdict(nil))
    assert.equal("resume", resuming.verdict {})
    assert.equal("removed", resuming.verdict { removed = true })
    assert.equal("unfinished", resuming.verdict { phase = "init" })
    assert.equal("wipe", resuming.verdict { phase = "leave", removed = true })
    assert.equal("recover", resuming.verdict { phase = "recover" })
  end)
end)

describe("renewal", function()
  it("comes at a point in the second half of a certificate's life that is its own", function()
    local info = { not_before = 0, not_after = 1000 }
    assert.equal(500, pki.renew_at(info, ("\0"):rep(32)))
    assert.equal(899, pki.renew_at(info, ("\255"):rep(32)))
    local seen = {}
    for i = 1, 20 do seen[pki.renew_at(info, crypto.sha256("serial" .. i))] = true end
    local n = 0
    for at in pairs(seen) do
      n = n + 1
      assert.is_true(at >= 500 and at <= 900)
    end
    assert.is_true(n > 5)
  end)

  it("comes at once when the manager is found elsewhere than its certificate says", fake.task(function()
    fake.reset()
    local made = fake.make()
    local before = fake.files["/dir/tls/node.crt"]
    assert.same({ "127.0.0.1", made.node_id, "localhost" }, crypto.cert_hosts(before))
    lifecycle.look_after()
    assert.equal(before, fake.files["/dir/tls/node.crt"])
    identity.me.advertise.remote = "10.9.9.9:27242"
    lifecycle.look_after()
    local after = fake.files["/dir/tls/node.crt"]
    assert.same({ "10.9.9.9", made.node_id }, crypto.cert_hosts(after))
    assert.equal(after, fake.tls)
    assert.equal("10.9.9.9:27242", state.get("/node/" .. made.node_id).remote_address)
    -- Whatever comes back, it is asked for once.
    local hosts = crypto.cert_hosts
    crypto.cert_hosts = function() return { "elsewhere" } end
    identity.me.advertise.remote = "10.9.9.8:27242"
    lifecycle.look_after()
    local second = fake.files["/dir/tls/node.crt"]
    assert.not_equal(after, second)
    lifecycle.look_after()
    crypto.cert_hosts = hosts
    assert.equal(second, fake.files["/dir/tls/node.crt"])
  end))

  it("brings the hosts into a certificate that was made without", fake.task(function()
    fake.reset()
    local made = fake.make()
    local bare = fake.files["/dir/tls/node.crt"]:gsub('"hosts":%b[],?', "")
    fake.files["/dir/tls/node.crt"], identity.tls.cert = bare, bare
    assert.same({}, crypto.cert_hosts(bare))
    lifecycle.look_after()
    assert.same({ "127.0.0.1", made.node_id, "localhost" }, crypto.cert_hosts(fake.files["/dir/tls/node.crt"]))
  end))

  it("is done by the manager itself, also past the end", fake.task(function()
    fake.reset()
    fake.make()
    local before = fake.files["/dir/tls/node.crt"]
    fake.now = fake.now + 100 * 86400
    assert(lifecycle.renew())
    assert.not_equal(before, fake.files["/dir/tls/node.crt"])
    assert.equal(fake.files["/dir/tls/node.crt"], fake.tls)
    assert.equal(fake.now + 90 * 86400, identity.tls.info.not_after)
    assert.equal(before:match('"key":"(%w+)"'), fake.tls:match('"key":"(%w+)"'))
  end))
end)

describe("leave", function()
  before_each(function() fake.reset() end)

  it("has its way for each case", function()
    assert.equal("forget", leave.way({ removed = true }, nil))
    assert.equal("forget", leave.way({ phase = "leave" }, nil))
    assert.equal("remove", leave.way({}, 3))
    assert.equal("last", leave.way({}, 1, true))
    local ok, err = leave.way({}, 1)
    assert.is_nil(ok)
    assert.truthy(err.hint:find("--force", 1, true))
    ok, err = leave.way(nil)
    assert.is_nil(ok)
    assert.equal("no_cluster", err.code)
  end)

  it("ends the cluster as the last one when forced", fake.task(function()
    fake.make()
    assert.is_nil(leave.run {})
    assert.is_true(fake.started)
    local answer = assert(leave.run { force = true })
    assert.is_true(answer.ended)
    nothing_left()
    assert.equal(0, #fake.quits)
  end))

  it("is finished at the next start when it was killed", fake.task(function()
    fake.make()
    fake.quiet()
    local doc = saved()
    doc.phase = "leave"
    identity.save(doc)
    restart()
    nothing_left()
    assert.equal(0, #fake.quits)
  end))
end)

describe("recover", function()
  before_each(function() fake.reset() end)

  local function lose_quorum()
    recover.lost_for_ms = 100
    add_member(2, "voter", true)
    add_member(3, "voter", true)
    fake.read_error = { code = "no_quorum", message = "no answer" }
  end

  it("is refused while there is a quorum", fake.task(function()
    fake.make()
    local ok, err = recover.check()
    assert.is_nil(ok)
    assert.equal("conflict", err.code)
  end))

  it("makes the survivor the only voter and takes the others out", fake.task(function()
    local made = fake.make()
    lose_quorum()
    fake.apply { ops = { state.put("/peer/0member2", { key = "k" }), state.put("/status/node/0member3", {}) } }
    assert.equal(2, #assert(recover.check()))
    fake.hooks.change()
    package.loaded["sym.node"].recover = (function(real)
      return function(o)
        fake.read_error = nil
        return real(o)
      end
    end)(package.loaded["sym.node"].recover)
    local answer = assert(recover.run())
    assert.equal(2, #answer.removed)
    assert.same({ raft_id = 1, raft_address = "127.0.0.1:15760" }, fake.recovered)
    assert.equal(1, #state.list_raw("/node/"))
    assert.equal(1, #state.list_raw("/raft/"))
    assert.equal(1, #state.list_raw("/fingerprint/"))
    for _ = 1, 200 do
      if #state.list_raw("/removed/") == 0 then break end
      require("symphony.async").sleep(5)
    end
    for _, prefix in ipairs { "/name/", "/fingerprint/" } do assert.equal(1, #state.list_raw(prefix)) end
    assert.same({}, state.list_raw("/removed/"))
    for _, key in ipairs { "/peer/0member2", "/status/node/0member3" } do assert.is_nil(state.text(key)) end
    local list = require("symphony.cluster.events").list {}
    assert.equal("cluster.recovered", list[#list].kind)
    assert.equal(2, state.cluster().epoch)
    assert.is_nil(saved().phase)
    assert.equal(2, saved().starts)
    assert.equal(made.node_id, saved().node_id)
  end))

  it("looks again after the question, and only at a quorum that is lost", fake.task(function()
    fake.make()
    lose_quorum()
    assert.equal(2, #assert(recover.check()))
    fake.read_error = nil
    local ok, err = recover.run()
    assert.is_nil(ok)
    assert.equal("conflict", err.code)
    assert.is_nil(fake.recovered)
    assert.is_nil(saved().phase)
    fake.read_error = { code = "busy", message = "too many" }
    assert.equal("busy", select(2, recover.check()).code)
    assert.equal("busy", select(2, recover.run()).code)
    assert.is_nil(saved().phase)
  end))

  it("that stopped half-way is finished when it is said again", fake.task(function()
    fake.make()
    lose_quorum()
    local real = package.loaded["sym.node"].recover
    package.loaded["sym.node"].recover = function()
      return nil, { code = "no_space", message = "the disk is full" }
    end
    local answer, err = recover.run()
    assert.is_nil(answer)
    assert.equal("no_space", err.code)
    assert.truthy(err.message:find("half-way", 1, true))
    assert.truthy(err.hint:find("manager recover", 1, true))
    assert.equal("recover", saved().phase)
    package.loaded["sym.node"].recover = real
    fake.read_error = nil
    assert.equal(2, #assert(recover.check()))
    assert.equal(2, #assert(recover.run()).removed)
    assert.is_nil(saved().phase)
  end))

  it("that could not be written down leaves this manager as it was", fake.task(function()
    fake.make()
    lose_quorum()
    local save = identity.save
    identity.save = function() return nil, { code = "no_space", message = "the disk is full" } end
    local answer, err = recover.run()
    identity.save = save
    assert.is_nil(answer)
    assert.equal("no_space", err.code)
    assert.is_nil(identity.me.phase)
  end))

  it("is finished at the next start when it was killed", fake.task(function()
    fake.make()
    lose_quorum()
    fake.quiet()
    local doc = saved()
    doc.phase = "recover"
    identity.save(doc)
    fake.read_error = nil
    restart()
    assert.truthy(fake.recovered)
    assert.is_nil(saved().phase)
    assert.equal(1, #state.list_raw("/node/"))
    assert.equal(0, #fake.quits)
  end))

  it("wants a survivor that knows itself", fake.task(function()
    local made = fake.make()
    lose_quorum()
    fake.kvs["/node/" .. made.node_id] = nil
    local ok, err = recover.check()
    assert.is_nil(ok)
    assert.equal("state_unknown", err.code)
  end))
end)

describe("members", function()
  before_each(function() fake.reset() end)

  it("has the shape that others rely on", fake.task(function()
    local made = fake.make { name = "first" }
    add_member(2, "standby", true)
    local rows = assert(members.list())
    assert.same({
      { raft_node_id = 1, node_id = made.node_id, name = "first", raft_role = "voter", leader = true,
        raft_address = "127.0.0.1:15760", remote_address = "127.0.0.1:27242", reachable = true },
      { raft_node_id = 2, node_id = "0member2", name = "m2", raft_role = "standby", leader = false,
        raft_address = "h:2",
        remote_address = "r:2", reachable = false },
    }, rows)
    fake.read_error = { code = "no_quorum", message = "no answer" }
    rows = assert(members.list())
    for _, row in ipairs(rows) do
      assert.is_true(row.stale)
      assert.equal("no answer", row.reason)
    end
  end))

  it("finds one by raft id, node id or name", fake.task(function()
    fake.make { name = "first" }
    add_member(2)
    local rows = members.planned()
    assert.equal(2, members.find(rows, "2").id)
    assert.equal(2, members.find(rows, "m2").id)
    assert.equal(2, members.find(rows, "0member2").id)
    local ok, err = members.find(rows, "3")
    assert.is_nil(ok)
    assert.equal("not_found", err.code)
  end))

  it("says loudly what is wrong", fake.task(function()
    fake.make { dev = true }
    local function warnings(word)
      return table.concat(assert(members.overview()).warnings, "\n"):find(word, 1, true) ~= nil
    end
    assert.is_true(warnings("DEVELOPMENT MODE"))
    assert.is_false(warnings("no quorum"))
    add_member(2, "standby")
    assert.is_true(warnings("tolerate no failure"))
    fake.status.no_space = true
    assert.is_true(warnings("no space"))
    fake.apply { ops = { state.put("/cluster/restoring", { source = "file" }) } }
    assert.is_true(warnings("restore of file"))
    fake.read_error = { code = "no_quorum", message = "no answer" }
    assert.is_true(warnings("no quorum"))
    local s = members.overview()
    assert.is_false(s.quorum)
    assert.is_true(s.stale)
    assert.truthy(json.encode(s))
  end))
end)
