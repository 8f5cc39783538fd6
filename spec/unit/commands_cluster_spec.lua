local fake = require "spec.unit.cluster_fake"
local commands = require "symphony.cli.commands"
local errors = require "symphony.errors"
local execute = require "symphony.cli.execute"
local json = require "symphony.json"
local parser = require "symphony.cli.parser"
local reconcile = require "symphony.cluster.reconcile"
local state = require "symphony.cluster.state"

local OURS = { "manager", "token", "node", "events", "kv", "txn", "cluster" }

-- Runs a command in this process: status, out, err.
local function run(argv, more)
  local out, complaints = {}, {}
  local ctx = { client = {}, out = function(t) out[#out + 1] = t end,
    err = function(t) complaints[#complaints + 1] = t end,
    confirm = function() return false end, call = function() error("no daemon to call") end,
    cancelled = function() return false end, on_cancel = function() end }
  for k, v in pairs(more or {}) do ctx[k] = v end
  local status = execute.command(argv, ctx, function(err) return err end)
  return status, table.concat(out), table.concat(complaints)
end

local function json_of(argv, more)
  table.insert(argv, 1, "--json")
  local status, out, err = run(argv, more)
  assert.equal(0, status, out .. err)
  return assert(json.decode(out))
end

local function fails(code, argv, more)
  table.insert(argv, 1, "--json")
  local status, out, err = run(argv, more)
  assert.equal("", out)
  local failure = assert(json.decode(err)).error
  assert.equal(code, failure.code, err)
  assert.not_equal(0, status)
  return failure, status
end

local function leaves()
  local list = {}
  local function walk(spec, path)
    local words = path .. (path == "" and "" or " ") .. spec.name:match("%S+")
    if spec.run then list[#list + 1] = { spec = spec, words = words } end
    for _, sub in ipairs(spec.commands or {}) do walk(sub, words) end
  end
  for _, name in ipairs(OURS) do walk(commands.get(name), "") end
  return list
end

describe("every command of the cluster", function()
  it("has a summary, a description and an example that its own parser takes", function()
    assert.is_true(#leaves() >= 20)
    for _, leaf in ipairs(leaves()) do
      assert.is_string(leaf.spec.summary, leaf.words)
      local help = assert(parser.help { table.unpack((function()
        local words = {}
        for word in leaf.words:gmatch("%S+") do words[#words + 1] = word end
        return words
      end)()) })
      local examples = help:match("Example:\n(.-)\n\n") or help:match("Example:\n(.*)$")
      assert.is_string(examples, leaf.words)
      local n = 0
      for line in examples:gmatch("symphony ([^|\n]+)") do
        if line:find("^%-%-json") or line:find("^%l") then
          n = n + 1
          local argv = {}
          for word in line:gsub("'[^']*'", "text"):gsub("%.%.%.", "x"):gmatch("%S+") do argv[#argv + 1] = word end
          local parsed, err = parser.parse(argv)
          assert(parsed, line .. ": " .. tostring(err))
          assert.equal(leaf.words, table.concat(parsed.path, " "))
        end
      end
      assert.is_true(n > 0, leaf.words)
      for line in help:gmatch("[^\n]+") do assert.is_true(#line <= 120, line) end
    end
  end)

  it("is understood without a daemon's modules", function()
    -- The client loads these files: nothing of the store or of raft may be wanted at that time.
    for name in pairs(package.loaded) do
      if name:find("^symphony%.cli%.commands") then package.loaded[name] = nil end
    end
    local hidden = {}
    for _, name in ipairs { "sym.store", "sym.raft", "sym.node" } do
      hidden[name] = package.loaded[name]
      package.loaded[name] = nil
    end
    local ok, err = pcall(function()
      for _, name in ipairs(OURS) do require("symphony.cli.commands." .. name) end
    end)
    for name, module in pairs(hidden) do package.loaded[name] = module end
    assert(ok, err)
  end)
end)

describe("manager", function()
  before_each(function() fake.reset() end)

  it("init prints the shape that others rely on, and both join commands", fake.task(function()
    local answer = json_of { "manager", "init", "--name", "first", "--token-ttl", "1h" }
    local keys = {}
    for k in pairs(answer) do keys[#keys + 1] = k end
    table.sort(keys)
    assert.same({ "cluster_id", "node_id", "raft_node_id", "tokens" }, keys)
    fails("exists", { "manager", "init" })
    fake.quiet()
    fake.reset()
    local status, out = run { "manager", "init", "--dev" }
    assert.equal(0, status)
    assert.truthy(out:find("symphony manager join 127.0.0.1:27242 --token SYMTKN-1-", 1, true))
    assert.truthy(out:find("symphony block join 127.0.0.1:27242 --token SYMTKN-1-", 1, true))
    assert.truthy(out:find("DEVELOPMENT MODE", 1, true))
  end))

  it("refuses wrong options by name", fake.task(function()
    fails("invalid", { "manager", "init", "--token-ttl", "soon" })
    fails("invalid", { "manager", "init", "--name", "a b" })
    fails("invalid", { "manager", "init", "--advertise", "0.0.0.0" })
    fails("usage", { "manager", "remove" })
    assert.is_nil(fake.files["/dir/key.json"])
  end))

  it("status tells an idle and a removed daemon what to do", fake.task(function()
    assert.equal("idle", json_of({ "manager", "status" }).state)
    local _, out = run { "manager", "status" }
    assert.truthy(out:find("manager init", 1, true))
    fake.make { name = "first" }
    _, out = run { "manager", "status" }
    assert.truthy(out:find("first", 1, true) and out:find("tolerates  no failure", 1, true), out)
    fake.hooks.removed(nil, "not_found", "removed")
    require("symphony.async").sleep(1)
    assert.equal("removed", json_of({ "manager", "status" }).state)
    _, out = run { "manager", "status" }
    assert.truthy(out:find("manager leave", 1, true))
    local failure = fails("removed", { "manager", "members" })
    assert.truthy(failure.hint:find("manager leave", 1, true))
  end))

  it("status counts what is lost already", fake.task(function()
    fake.make()
    local servers = fake.status.servers
    for id = 2, 5 do servers[id] = { id = id, address = "h:" .. id, role = "voter", up = true } end
    local function tolerates()
      return select(2, run { "manager", "status" }):match("tolerates  ([^\n]*)")
    end
    assert.equal("the loss of any 2", tolerates())
    servers[5].up = false
    assert.equal("the loss of any one now; with all voters up the loss of any 2", tolerates())
    servers[4].up = false
    assert.equal("no further failure now; with all voters up the loss of any 2", tolerates())
    fake.read_error = { code = "no_quorum", message = "nobody answers" }
    assert.equal("no further failure now; with all voters up the loss of any 2", tolerates())
    assert.equal(2, json_of({ "manager", "status" }).tolerates)
  end))

  it("status of one that is ending says so", fake.task(function()
    fake.make()
    local real = package.loaded["sym.raft"].status
    package.loaded["sym.raft"].status = function()
      fake.started = false
      return nil, { code = "closed", message = "the node is not started" }
    end
    local _, out = run { "manager", "status" }
    package.loaded["sym.raft"].status, fake.started = real, true
    assert.truthy(out:find("not serving: it is starting or ending", 1, true), out)
  end))

  it("members marks a stale answer", fake.task(function()
    fake.make()
    local _, out, err = run { "manager", "members" }
    assert.truthy(out:find("RAFT ID"))
    assert.equal("", err)
    fake.read_error = { code = "no_quorum", message = "nobody answers" }
    _, out, err = run { "manager", "members" }
    assert.truthy(out:find("RAFT ID"))
    assert.truthy(err:find("nobody answers"))
    assert.is_true(json_of({ "manager", "members" })[1].stale)
  end))

  it("recover asks, and does nothing without a yes", fake.task(function()
    fake.make()
    fails("conflict", { "manager", "recover", "--yes" })
    fake.read_error = { code = "no_quorum", message = "x" }
    require("symphony.cluster.recover").lost_for_ms = 100
    local asked
    local failure, status = fails("canceled", { "manager", "recover" }, { confirm = function(question)
      asked = question
      return false
    end })
    assert.equal(130, status)
    assert.truthy(failure.hint:find("--yes", 1, true))
    assert.truthy(asked:find("only voter"))
    assert.is_nil(fake.recovered)
  end))

  it("remove says what it would do", fake.task(function()
    fake.make { name = "first" }
    reconcile.stop()
    local remove = require "symphony.cluster.remove"
    fake.answer = function(opts)
      local ok, answer = pcall(remove.serve, "1", json.decode(opts.body))
      return nil, { status = ok and 200 or errors.http_status(answer), body = json.encode(ok and answer or
        errors.body(answer)) }
    end
    local status, out = run { "manager", "remove", "first", "--plan" }
    assert.equal(0, status)
    assert.truthy(out:find("last manager") and out:find("Nothing has been changed"), out)
    assert.truthy(fails("conflict", { "manager", "remove", "1" }).message:find("last"))
  end))

  it("join takes its token from the flag, a file or the environment", function()
    local sys = package.loaded["sym.sys"]
    local read, getenv = sys.read_file, sys.getenv
    sys.read_file = function(path)
      if path == "/token" then return "FROM-FILE\n" end
      return nil, { code = "not_found", message = path }
    end
    sys.getenv = function(name) return name == "SYMPHONY_TOKEN" and "FROM-ENV" or nil end
    local sent
    local function call(_, path, body, opts)
      assert.equal("/v1/manager/join", path)
      sent = body
      opts.on_data('{"say":"waiting\\n"}\n{"done":{"cluster_id":"c","name":"n","raft_role":"standby","raft_node_id":2,')
      opts.on_data('"members":2,"voters":1,"warning":"two tolerate no failure","tolerates":0}}\n')
      return true
    end
    fake.run(function()
      local _, out, err = run({ "manager", "join", "h:1", "--token", "FROM-FLAG" }, { call = call })
      assert.equal("FROM-FLAG", sent.token)
      assert.truthy(out:find("no failure") and err:find("waiting"), out .. err)
      run({ "manager", "join", "h:1", "--token-file", "/token" }, { call = call })
      assert.equal("FROM-FILE", sent.token)
      run({ "manager", "join", "h:1" }, { call = call })
      assert.equal("FROM-ENV", sent.token)
      fails("not_found", { "manager", "join", "h:1", "--token-file", "/none" }, { call = call })
      local wrong = fails("usage", { "manager", "join", "h:1", "--token", "a", "--token-file", "/token" },
        { call = call })
      assert.truthy(wrong.hint:find("symphony help manager join", 1, true))
      local failure = fails("denied", { "manager", "join", "h:1" }, { call = function(_, _, _, opts)
        opts.on_data('{"error":{"code":"denied","message":"this token is used up","hint":"another"}}\n')
        return true
      end })
      assert.equal("another", failure.hint)
      fails("outcome_unknown", { "manager", "join", "h:1" }, { call = function() return true end })
    end)
    sys.read_file, sys.getenv = read, getenv
  end)
end)

describe("token and node", function()
  before_each(function() fake.reset() end)

  it("create, ls, rm and rotate", fake.task(function()
    fake.make()
    local made = json_of { "token", "create", "--role", "manager", "--ttl", "1h", "--uses", "2", "--label", "a=b",
      "--cidr", "10.0.0.0/8" }
    assert.truthy(made.token:find("^SYMTKN%-1%-"))
    assert.same({ a = "b" }, made.labels)
    assert.equal(3, #json_of { "token", "ls" })
    local _, out = run { "token", "ls" }
    assert.truthy(out:find(made.id, 1, true))
    assert.is_nil(out:find(made.token:sub(-25), 1, true))
    assert.equal(made.id, json_of({ "token", "rm", made.id }).id)
    fails("not_found", { "token", "rm", made.id })
    assert.equal(1, #json_of({ "token", "rotate", "--role", "worker" }).removed)
    fails("invalid", { "token", "create", "--role", "king" })
    fails("invalid", { "token", "create", "--cidr", "10.0.0.1/8" })
    fails("invalid", { "token", "create", "--ttl", "0" })
    fails("usage", { "token", "create", "--uses", "0" })
  end))

  it("pending, approve and reject", fake.task(function()
    fake.make()
    local admit = require "symphony.cluster.admit"
    for _, name in ipairs { "j1", "j2" } do
      admit.serve(admit.check { role = "manager", csr = fake.csr(name), name = "h", addresses = { raft = "a:1",
        remote = "a:2", gossip = "a:3" } }, "10.0.0.9")
    end
    local rows = json_of { "node", "pending" }
    assert.equal(2, #rows)
    assert.equal("10.0.0.9", rows[1].from)
    fails("denied", { "node", "approve", rows[1].id, "--fingerprint", ("0"):rep(64) })
    fails("usage", { "node", "approve", rows[1].id })
    assert.equal(2, json_of({ "node", "approve", rows[1].id, "--fingerprint", rows[1].fingerprint }).raft_node_id)
    json_of { "node", "reject", rows[2].id }
    assert.same({}, json_of { "node", "pending" })
    local nodes = json_of { "node", "ls" }
    assert.equal(2, #nodes)
    assert.is_nil(nodes[1].certificate)
  end))

  local WORKER = { node_id = "0worker1vvvvvvvvvvvvvvvvvv", name = "w1", role = "worker", services = { "block" },
    fingerprint = "f", remote_address = "h:1", labels = { zone = "a" }, availability = "drain", version = "1.2",
    joined = 1600000000, certificate_expires = 1700090000 }

  local function with_worker(fn)
    return fake.task(function()
      fake.make { name = "first" }
      reconcile.stop()
      fake.apply { ops = { state.put("/node/" .. WORKER.node_id, WORKER), state.put("/name/w1", WORKER.node_id),
        state.put("/status/node/" .. WORKER.node_id, { status = "down", since = fake.now - 100,
          reason = "no\27 answer" }),
        state.put("/assign/" .. WORKER.node_id .. "/volume/v", "1") } }
      fn()
    end)
  end

  it("ls and inspect show nodes for people and for programs", with_worker(function()
    local out = select(2, run { "node", "ls" })
    assert.truthy(out:find("\n0worker1%w* +w1 +worker: block +down for 1m +drain +1.2 +h:1 +in 25h 0m\n"), out)
    assert.truthy(out:find("first +manager: voter, leader +ready +active"), out)
    local rows = json_of { "node", "ls" }
    local row = rows[1].name == "w1" and rows[1] or rows[2]
    for _, field in ipairs { "node_id", "name", "role", "services", "status", "since", "availability", "labels",
      "addresses", "version", "certificate_expires" } do
      assert.not_nil(row[field], field)
    end
    assert.truthy(select(2, run { "manager", "status" }):find("\nnodes      2: 1 ready, 1 down (w1)\n", 1, true))
    assert.same({ total = 2, ready = 1, joining = 0, down = 1, left = 0, lost = { "w1" } },
      json_of({ "manager", "status" }).nodes)
    out = select(2, run { "node", "inspect", "w1" })
    for _, line in ipairs { "name            w1", "role            worker: block", "status          down for 1m",
      "reason          no\\x1b answer", "labels          zone=a", "assignments     1", "remote address  h:1",
      "joined          2020-09-13 12:26:40 UTC" } do
      assert.truthy(out:find(line .. "\n", 1, true), line .. "\n" .. out)
    end
    local shown = json_of { "node", "inspect", "w1", "first" }
    assert.same({ "w1", 1, {} }, { shown[1].name, shown[1].assignments, shown[1].events })
    assert.equal("node.joined", shown[2].events[1].kind)
    fails("not_found", { "node", "inspect", "w1", "nobody" })
    fails("usage", { "node", "inspect" })
  end))

  it("update and rm ask the leader, and say what became of it", with_worker(function()
    local nodes, sent = require "symphony.cluster.nodes", 0
    fake.answer = function(opts)
      sent = sent + 1
      local ok, answer
      if opts.method == "PATCH" then
        ok, answer = pcall(nodes.serve_update, opts.path:match("[^/]*$"), json.decode(opts.body))
      else
        local force = opts.path:find("?force=true", 1, true)
        ok, answer = pcall(nodes.serve_remove, opts.path:match("nodes/([^?]*)"), { force = force ~= nil })
      end
      return nil, { status = ok and 200 or errors.http_status(answer), body = json.encode(ok and answer or
        errors.body(answer)) }
    end
    local _, out = run { "node", "update", "w1", "--availability", "active", "--label-add", "a=b", "--label-rm", "zone",
      "--name", "w2" }
    assert.equal("w2: w1 is called w2 now; availability active, was drain; label a=b; no label zone.\n", out)
    _, out = run { "node", "update", "w2", "--name", "w2" }
    assert.equal("w2 is so already.\n", out)
    assert.equal(2, sent)
    fails("usage", { "node", "update", "w2" })
    fails("usage", { "node", "update", "w2", "--label-add", "a=b", "--label-rm", "a" })
    fails("usage", { "node", "update", "w2", "--availability", "off" })
    fails("usage", { "node", "update", "w2", "--label-add", "a" })
    fails("invalid", { "node", "update", "w2", "--name", "17" })
    fails("not_found", { "node", "rm", "nobody" })
    assert.equal(2, sent)
    assert.truthy(fails("conflict", { "node", "rm", "w2" }).message:find("1 assignment$"))
    _, out = run { "node", "rm", WORKER.node_id:sub(1, 7), "--force" }
    assert.equal(("worker w2 (%s) is removed. What it had to do (1) is forgotten.\n"):format(WORKER.node_id), out)
  end))
end)

describe("events", function()
  before_each(function() fake.reset() end)

  it("are shown with what led to them", fake.task(function()
    fake.make { name = "first" }
    local events = require "symphony.cluster.events"
    assert(events.record { kind = "node.down", message = "w1 is down", reason = "no answer",
      node = { node_id = "0w", name = "w1" } })
    assert(events.record { kind = "node.down", message = "w1 is down: no answer", reason = "no answer" })
    assert(events.record { kind = "node.down", message = "bad\nline" })
    assert(events.record { kind = "node.down", reason = "no answer" })
    local _, out = run { "events", "--kind", "node.down" }
    local lines = {}
    for line in out:gmatch("([^\n]*)\n") do lines[#lines + 1] = line end
    assert.same({ "2023-11-14 22:13:20  node.down  w1    w1 is down (no answer)",
      "2023-11-14 22:13:20  node.down  -     w1 is down: no answer",
      "2023-11-14 22:13:20  node.down  -     bad\\x0aline", "2023-11-14 22:13:20  node.down  -     no answer" },
      table.move(lines, 2, 5, 1, {}))
  end))
end)

describe("kv and txn", function()
  before_each(function() fake.reset() end)

  it("get prints the value as it is", fake.task(function()
    fake.make()
    fake.apply { ops = { state.put("/kv/a", "one\n"), state.put("/kv/b", "\255\0"), state.put("/kv/c", "x") } }
    assert.same({ key = "a", value = "one\n", create_revision = 2, mod_revision = 2 }, json_of { "kv", "get", "a" })
    assert.equal("/wA=", json_of({ "kv", "get", "b" }).value_base64)
    assert.equal("one\n", select(2, run { "kv", "get", "a" }))
    assert.equal("\255\0", select(2, run { "kv", "get", "b" }))
    assert.equal("x", select(2, run { "kv", "get", "c" }))
    assert.equal("x\n", select(2, run({ "kv", "get", "c" }, { client = { tty = true } })))
    local _, status = fails("not_found", { "kv", "get", "none" })
    assert.equal(1, status)
    fails("too_big", { "kv", "get", ("k"):rep(1025) })
    fails("invalid", { "kv", "get", "" })
  end))

  it("marks what may be old", fake.task(function()
    fake.make()
    fake.apply { ops = { state.put("/kv/a", "1") } }
    fake.read_error = { code = "no_quorum", message = "nobody answers" }
    local got = json_of { "kv", "get", "a" }
    assert.same({ true, "nobody answers" }, { got.stale, got.reason })
    assert.is_true(json_of({ "kv", "ls" })[1].stale)
    local _, out, err = run { "kv", "get", "a" }
    assert.equal("1", out)
    assert.truthy(err:find("no quorum"))
    local failure, status = fails("no_quorum", { "kv", "rm", "a" })
    assert.equal(5, status)
    assert.is_string(failure.hint)
  end))

  it("ls lists by prefix, with a limit", fake.task(function()
    fake.make()
    for i = 1, 5 do fake.apply { ops = { state.put("/kv/a" .. i, "v"), state.put("/kv/b" .. i, "v") } } end
    assert.equal(10, #json_of { "kv", "ls" })
    assert.equal(5, #json_of { "kv", "ls", "b" })
    assert.same({}, json_of { "kv", "ls", "c" })
    assert.equal("a4", json_of({ "kv", "ls", "a", "--after", "a3" })[1].key)
    local status, out, err = run { "kv", "ls", "--limit", "3" }
    assert.equal(0, status)
    assert.equal(4, select(2, out:gsub("\n", "")))
    assert.equal("there are more keys than these 3: symphony kv ls --limit 3 --after a3\n", err)
  end))

  it("ls says how to go on so that it can be pasted, whatever the keys are", fake.task(function()
    fake.make()
    for key, line in pairs { ["a/b"] = "a/b", ["a b"] = "'a b'", ["it's"] = [['it'\''s']], ["-x"] = "-x",
      ["\u{e9}"] = "'\u{e9}'", ["a\nb\27"] = [[$'a\x0ab\x1b']], ["\xff'"] = [[$'\xff\x27']],
      ["\1a\\nb"] = [[$'\x01a\x5cnb']] } do
      fake.apply { ops = { state.put("/kv/" .. key, "v"), state.put("/kv/" .. key .. "~", "v") } }
      local _, _, err = run { "kv", "ls", "--limit", "1", "--", key }
      local dash = key == "-x"
      assert.equal(("there are more keys than these 1: symphony kv ls --limit 1 --after%s%s %s%s\n"):format(
        dash and "=" or " ", line, dash and "-- " or "", line), err)
    end
  end))

  it("ls of very many lets others have their turn", fake.task(function()
    fake.make()
    for i = 1, 3000 do fake.apply { ops = { state.put(("/kv/%05d"):format(i), "v") } } end
    local async = require "symphony.async"
    for _, argv in ipairs { { "kv", "ls", "--limit", "3000" }, { "--json", "kv", "ls", "--limit", "3000" } } do
      local turns = 0
      local other = async.every(0, function() turns = turns + 1 end)
      local status, out = run(argv)
      other.stop()
      assert.equal(0, status)
      assert.truthy(out:find("03000", 1, true))
      assert.is_true(turns >= 5, "only " .. turns)
      if argv[1] == "--json" then
        assert.equal(3000, #json.decode(out))
        assert.equal(out, json.encode(json.decode(out)) .. "\n")
      end
    end
  end))

  it("rm deletes, and says when there is nothing", fake.task(function()
    fake.make()
    fake.apply { ops = { state.put("/kv/a", "1") } }
    assert.equal(3, json_of({ "kv", "rm", "a" }).revision)
    fails("not_found", { "kv", "rm", "a" })
  end))

  it("watch prints events until it is canceled", fake.task(function()
    fake.make()
    local async = require "symphony.async"
    local lines = {}
    local task = async.spawn(function()
      run({ "--json", "kv", "watch", "a" }, { out = function(t) lines[#lines + 1] = t end })
    end)
    async.sleep(1)
    fake.apply { ops = { state.put("/kv/a1", "1"), state.put("/kv/b1", "1") } }
    fake.apply { ops = { state.delete("/kv/a1") } }
    async.sleep(1)
    task:cancel()
    task:wait()
    assert.equal(2, #lines)
    local event = json.decode(lines[1])
    assert.same({ "put", "a1", "1", 2 }, { event.type, event.key, event.value, event.revision })
    assert.equal("delete", json.decode(lines[2]).type)
  end))

  it("watch does not hold what a reader who takes next to nothing will never see", fake.task(function()
    fake.make()
    local async = require "symphony.async"
    local lines, go = {}, async.event()
    local failure
    local task = async.spawn(function()
      failure = fails("busy", { "kv", "watch" }, { out = function(t)
        lines[#lines + 1] = t
        go:wait()
      end })
    end)
    async.sleep(1)
    local before = fake.watching()
    local value = ("v"):rep(1 << 20)
    for i = 1, 15 do fake.apply { ops = { state.put("/kv/" .. i, value) } } end
    async.sleep(1)
    assert.equal(before, fake.watching())
    for i = 1, 15 do fake.apply { ops = { state.put("/kv/" .. i, value) } } end
    assert.equal(before - 1, fake.watching(), "it still watches")
    assert.equal(1, #lines)
    go:set()
    task:wait()
    assert.equal(1, #lines)
    local shown = json.decode(lines[1]).revision
    assert.truthy(failure.hint:find("--from " .. shown, 1, true), failure.hint)
  end))

  it("put checks the limits before it sends, and encodes the key", function()
    fake.run(function()
      local sent
      local function call(method, path, body)
        sent = { method, path, body }
        return { revision = 7 }
      end
      assert.equal(7, json_of({ "kv", "put", "a b/ä", "v" }, { call = call }).revision)
      assert.same({ "PUT", "/v1/kv/a%20b/%C3%A4", "v" }, sent)
      json_of({ "kv", "put", "/x", "v" }, { call = call })
      assert.equal("/v1/kv/%2Fx", sent[2])
      json_of({ "kv", "put", "x", "v", "--if-revision", "3" }, { call = call })
      assert.equal("/v1/kv/x?mod_revision=3", sent[2])
      sent = nil
      fails("too_big", { "kv", "put", ("k"):rep(1025), "v" }, { call = call })
      fails("too_big", { "kv", "put", "a", ("v"):rep((1 << 20) + 1) }, { call = call })
      fails("invalid", { "kv", "put", "", "v" }, { call = call })
      assert.truthy(fails("usage", { "kv", "put", "a" }, { call = call }).hint:find("symphony help kv put", 1, true))
      fails("usage", { "kv", "put", "a", "v", "--file", "f" }, { call = call })
      assert.is_nil(sent)
      local _, status = fails("no_quorum", { "kv", "put", "a", "v" }, { call = function()
        return nil, errors.new("no_quorum", "no quorum", "a hint")
      end })
      assert.equal(5, status)
      -- A removed manager says so, although the kv routes only know that there is nothing here.
      fails("removed", { "kv", "put", "a", "v" }, { call = function(method)
        return nil, errors.new(method == "GET" and "removed" or "closed", "x")
      end })
    end)
  end)
end)

describe("cluster", function()
  it("restore does nothing without a yes, and nothing with a damaged file", function()
    fake.reset()
    local backup = require "symphony.cluster.backup"
    local text = backup.file({ cluster_id = "0c", keys = 1, revision = 3 }, { { key = "/kv/a", value = "1",
      revision = 2 } },
      require("sym.crypto").sha256)
    local called = {}
    local function call(method, path, body)
      called[#called + 1] = path
      if path == "/v1/restore/begin" then return { foreign = false, prefixes = { "/kv/", "/assign/" } } end
      if path:find("keys", 1, true) then
        return { keys = path:find("kv", 1, true) and { { k = "/kv/b", h = "x" } } or {}, more = false }
      end
      if path == "/v1/restore/apply" then
        assert.same({ { k = "/kv/a", v = "1" }, { k = "/kv/b", d = true } }, body.ops)
        return { revision = 9 }
      end
      return { epoch = 2 }
    end
    fake.files["/file"] = text
    fake.run(function()
      fails("canceled", { "cluster", "restore", "/file" }, { call = call })
      fake.files["/damaged"] = text:gsub("1", "2", 1)
      fails("corrupt", { "cluster", "restore", "/damaged", "--yes" }, { call = call,
        confirm = function() return true end })
      fails("not_found", { "cluster", "restore", "/none", "--yes" }, { call = call })
      assert.same({}, called)
      local done = json_of({ "cluster", "restore", "/file", "--yes" }, { call = call,
        confirm = function() return true end })
      assert.same({ 1, 1, 1, 2 }, { done.keys, done.written, done.deleted, done.epoch })
      assert.equal("/v1/restore/end", called[#called])
    end)
  end)

  it("backup writes what was streamed, whole", function()
    fake.reset()
    local backup = require "symphony.cluster.backup"
    local stream = backup.header_line { cluster_id = "0c" } .. backup.put_line("/kv/a", "1", 2) .. backup.end_line(2)
    fake.run(function()
      local function call(_, _, _, opts)
        for i = 1, #stream, 5 do opts.on_data(stream:sub(i, i + 4)) end
        return true
      end
      local done = json_of({ "cluster", "backup", "/out" }, { call = call })
      assert.equal(1, done.keys)
      assert.truthy(backup.parse(fake.files["/out"], require("sym.crypto").sha256))
      fake.files["/out"] = nil
      stream = stream:sub(1, -10)
      fails("corrupt", { "cluster", "backup", "/out" }, { call = call })
      assert.is_nil(fake.files["/out"])
    end)
  end)

  it("policy trace says once what each policy wants done", function()
    fake.reset()
    local function command(policy) return { do_ = "event", text = "from " .. policy } end
    local function row(policy)
      return { policy = policy, said = "commands", decision = { commands = { command(policy) } } }
    end
    local answer = { hook = "every.30s", policies = { row "a", row "b" }, commands = { command "a", command "b" } }
    fake.run(function()
      local argv, more = { "policy", "trace", "every.30s", "--input", "{}" }, { call = function() return answer end }
      local status, out = run(argv, more)
      assert.equal(0, status)
      for _, text in ipairs { "from a", "from b" } do
        assert.equal(1, select(2, out:gsub(text, "")), out)
      end
      assert.same({ "a", "b" }, { out:match("^(a)[^\n]*\n(b)[^\n]*\n$") })
      assert.equal(2, #json_of(argv, more).commands)
    end)
  end)
end)
