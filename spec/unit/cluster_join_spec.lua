local fake = require "spec.unit.cluster_fake"
local advertise = require "symphony.cluster.advertise"
local async = require "symphony.async"
local busy = require "symphony.cluster.busy"
local crypto = require "sym.crypto"
local identity = require "symphony.cluster.identity"
local join = require "symphony.cluster.join"
local json = require "symphony.json"
local pki = require "symphony.cluster.pki"
local remote = require "symphony.cluster.remote"
local state = require "symphony.cluster.state"
local statement = require "symphony.cluster.statement"
local token = require "symphony.cluster.token"

join.poll_ms = 1

local CLUSTER = "0cluster"

-- The other side: a CA, and an answer for whoever asks.
local function other_side()
  local ca_key, ca = pki.new_ca(CLUSTER, fake.now)
  local side = { ca = ca, token = token.make(crypto.unhex(crypto.cert_info(ca).digest), crypto.random(16)) }
  function side.welcome(body)
    return {
      node_id = "0node", raft_node_id = 2, name = body.name, role = "manager", cluster_id = CLUSTER, ca = ca,
      certificate = pki.sign(ca_key, ca, body.csr, { node_id = "0node", role = "manager", raft_node_id = 2 }, CLUSTER,
        fake.now), gossip_keys = {}, addresses = body.addresses, managers = { "10.0.0.1:27242" },
    }
  end
  -- The leader takes us in as soon as we have started.
  function side.admit(role)
    fake.kvs["/node/0node"] = { key = "/node/0node", create_revision = 1, mod_revision = 1, value = json.encode {
      node_id = "0node", raft_node_id = 2, name = "host", role = "manager", raft_address = "127.0.0.1:15760",
      remote_address = "127.0.0.1:27242", gossip_address = "127.0.0.1:37065", version = "1.2.3" } }
    fake.kvs["/raft/2"] = { key = "/raft/2", create_revision = 1, mod_revision = 1, value = "0node" }
    fake.status.servers = { { id = 1, role = "voter", up = true }, { id = 2, role = role or "standby", up = true } }
    fake.status.leader, fake.status.id = 1, 2
  end
  -- What somebody without a certificate and without a token gets, but for the CA.
  function side.shows()
    return nil, { status = 401, body = json.encode { error = { code = "unauthenticated", message = "no" } }, ca = ca,
      peer = {} }
  end
  function side.answers(status, doc, more)
    return function(opts)
      if opts.method == "GET" then return side.shows() end
      local body = json.decode(opts.body)
      side.asked = body
      local response = { status = status, body = json.encode(type(doc) == "function" and doc(body) or doc), ca = ca,
        peer = {} }
      for k, v in pairs(more or {}) do response[k] = v end
      return nil, response
    end
  end
  return side
end

local function run(opts, side)
  local said = {}
  opts.word = opts.word or "manager"
  if side then
    local real = package.loaded["sym.node"].start
    package.loaded["sym.node"].start = function(o)
      local ports, err = real(o)
      if ports then side.admit() end
      return ports, err
    end
    local answer, err = join.run(opts, function(text) said[#said + 1] = text end)
    package.loaded["sym.node"].start = real
    return answer, err, table.concat(said)
  end
  local answer, err = join.run(opts, function(text) said[#said + 1] = text end)
  return answer, err, table.concat(said)
end

local function untouched()
  assert.is_nil(fake.files["/dir/key.json"])
  assert.is_nil(fake.folders["/dir/raft"])
  assert.is_nil(identity.me)
  assert.is_false(fake.started)
end

describe("join.prepare", function()
  it("checks the address and the token before anything is asked", function()
    local side = other_side()
    local ready = assert(join.prepare { address = "host", token = side.token })
    assert.equal("host:27242", ready.at)
    assert.equal(crypto.cert_info(side.ca).digest, crypto.hex(ready.pin))
    assert.is_nil(join.prepare({ address = "host" }).pin)
    for _, opts in ipairs { { address = "" }, { address = "a b:1" }, { address = "host", token = "" },
      { address = "host", token = "x" }, { address = "host", name = "a b" } } do
      local ok, err = join.prepare(opts)
      assert.is_nil(ok)
      assert.equal("invalid", err.code)
    end
  end)
end)

describe("join.allowed", function()
  local me = { cluster_id = "c1" }
  it("says which cluster a member is in", function()
    assert.is_true(join.allowed(nil, "p", nil))
    assert.is_true(join.allowed({ phase = "init", cluster_id = "c1" }))
    local _, err = join.allowed(me, "p", true)
    assert.equal("exists", err.code)
    assert.truthy(err.message:find("c1 already, the one of this token"))
    _, err = join.allowed(me, "p", false)
    assert.truthy(err.message:find("another cluster, c1"))
    _, err = join.allowed({ cluster_id = "c1", removed = true }, "p", false)
    assert.equal("removed", err.code)
    assert.truthy(err.hint:find("leave"))
  end)
end)

describe("join.progress", function()
  local me = { raft_node_id = 3 }
  local function rows(n)
    local out = {}
    for i = 1, n do out[i] = { id = i } end
    return out
  end
  local function status(...)
    local servers = {}
    for i, role in ipairs { ... } do servers[i] = { id = i, role = role } end
    return { servers = servers }
  end
  it("is settled as a voter, or as a standby of a cluster that has its voters", function()
    assert.is_falsy(join.progress(me, {}, { servers = {} }).member)
    assert.is_falsy(join.progress(me, rows(3), status("voter", "standby", "spare")).member)
    local p = join.progress(me, rows(3), status("voter", "standby", "standby"))
    assert.is_true(p.member)
    assert.is_false(p.settled)
    assert.is_true(join.progress(me, rows(3), status("voter", "voter", "voter")).settled)
    assert.is_true(join.progress({ raft_node_id = 2 }, rows(2), status("voter", "standby")).settled)
    assert.is_true(join.progress({ raft_node_id = 4 }, rows(4), status("voter", "voter", "voter", "standby")).settled)
    assert.is_falsy(join.progress(me, rows(2), status("voter", "voter", "voter")).member)
  end)
end)

describe("remote.explain", function()
  it("has its own words for each thing that can be wrong with an address", function()
    local seen = {}
    for _, code in ipairs { "not_found", "unreachable", "timeout", "protocol" } do
      local err = remote.explain({ code = code, message = "why" }, "host:1")
      assert.is_nil(seen[err.message])
      seen[err.message] = true
      assert.truthy(err.message:find("host", 1, true))
      assert.is_string(err.hint)
    end
    assert.truthy(remote.explain({ code = "not_found", message = "x" }, "host:1").message:find("does not resolve"))
    assert.truthy(remote.explain({ code = "closed", message = "x" }, "host:1").message:find("no symphony manager"))
  end)

  it("takes no worker for a manager", function()
    for _, code in ipairs { "unreachable", "timeout", "protocol", "closed", "io", "not_found", "too_large" } do
      local err = remote.explain({ code = code, message = "why" }, "host:1", "worker")
      assert.truthy(err.message:find("host", 1, true) and err.message:find("why", 1, true), err.message)
      assert.is_nil((err.message .. (err.hint or "")):find("manager", 1, true))
    end
    assert.is_nil((remote.answer_error(500, nil, "h", "worker").hint or ""):find("manager", 1, true))
  end)

  it("reads the error of an answer, and does not believe everything", function()
    assert.is_nil(remote.answer_error(200, {}, "h"))
    assert.equal("denied", remote.answer_error(403, { error = { code = "denied", message = "no" } }, "h").code)
    for _, doc in ipairs { 7, {}, { error = 7 }, { error = { code = 7 } } } do
      assert.equal("protocol", remote.answer_error(400, doc, "h").code)
    end
    assert.equal("protocol", remote.answer_error(404, nil, "h").code)
  end)
end)

describe("join.run", function()
  -- Nothing listens here: whether another program has the usual ports is no matter. Others are looked at.
  local check_ports = advertise.check_ports
  before_each(function()
    fake.reset()
    advertise.check_ports = function(options)
      local usual = options.raft_port == 15760 and options.remote_port == 27242 and options.gossip_port == 37065
      if usual then return true end
      return check_ports(options)
    end
  end)
  after_each(function() advertise.check_ports = check_ports end)

  it("joins with a token: key first, then the certificate, key.json and the node", fake.task(function()
    local side = other_side()
    fake.answer = function(opts)
      assert.is_string(fake.files["/dir/tls/node.key"])
      assert.is_nil(fake.files["/dir/key.json"])
      return side.answers(200, side.welcome)(opts)
    end
    local answer, err = run({ address = "10.0.0.1", token = side.token }, side)
    assert(answer, err)
    assert.same({ "0cluster", "0node", 2, "host", "standby" }, { answer.cluster_id, answer.node_id, answer.raft_node_id,
      answer.name, answer.raft_role })
    local request = fake.requests[1]
    assert.same({ "10.0.0.1", 27242, "/v1/join", "manager" }, { request.host, request.port, request.path,
      request.role })
    assert.equal(token.parse(side.token).ca, request.tls.pin)
    assert.equal("127.0.0.1:15760", side.asked.addresses.raft)
    local doc = json.decode(fake.files["/dir/key.json"])
    assert.same({ "0node", 2, 1, "manager" }, { doc.node_id, doc.raft_node_id, doc.starts, doc.role })
    assert.equal(fake.folders["/dir/raft"], doc.folder)
    assert.is_false(fake.starts[1].bootstrap)
    assert.truthy(identity.load_tls(doc))
  end))

  it("is on the loopback where the cluster is in development mode, unless an address was named", fake.task(function()
    local function joined(opts)
      local side = other_side()
      fake.answer = side.answers(200, function(body)
        local w = side.welcome(body)
        w.dev = true
        return w
      end)
      assert(run(opts, side))
      return json.decode(fake.files["/dir/key.json"]).advertise.raft, side.asked
    end
    fake.options.advertise_addr, fake.options.bind_addr = nil, "0.0.0.0"
    local raft, asked = joined { address = "127.0.0.1" }
    assert.same({ true, "10.0.0.5:15760", "127.0.0.1:15760" }, { asked.implied, asked.addresses.raft, raft })
    fake.quiet()
    fake.reset()
    fake.options.advertise_addr = "127.0.0.7"
    raft, asked = joined { address = "127.0.0.1" }
    assert.same({ false, "127.0.0.7:15760" }, { asked.implied, raft })
  end))

  it("says plainly that two tolerate no failure", fake.task(function()
    local side = other_side()
    fake.answer = side.answers(200, side.welcome)
    fake.kvs["/node/0other"] = { key = "/node/0other", create_revision = 1, mod_revision = 1, value = json.encode {
      node_id = "0other", raft_node_id = 1, name = "a", role = "manager", remote_address = "h:1" } }
    fake.kvs["/raft/1"] = { key = "/raft/1", create_revision = 1, mod_revision = 1, value = "0other" }
    local answer = assert(run({ address = "h", token = side.token }, side))
    assert.truthy(answer.warning:find("no failure"))
    assert.equal(2, answer.members)
  end))

  it("says where to look when the CA is another, or the port that of raft", fake.task(function()
    fake.answer = function() return { code = "unauthenticated", message = "not the pinned CA" } end
    local _, err = run { address = "h", token = other_side().token }
    assert.equal("unauthenticated", err.code)
    assert.truthy(err.hint:find("token of that cluster", 1, true) and err.hint:find("raft port", 1, true), err.hint)
  end))

  it("leaves everything as it was when it is refused", fake.task(function()
    local side = other_side()
    local cases = {
      { side.answers(403, { error = { code = "expired", message = "this token has expired 1s ago" } }), "expired" },
      { function() return { code = "unreachable", message = "connection refused" } end, "unreachable" },
      { function() return { code = "unauthenticated", message = "not the pinned CA" } end, "unauthenticated" },
      { function() return nil, { status = 200, body = "<html>" } end, "protocol" },
      { function() return nil, { status = 404, body = "" } end, "protocol" },
      { side.answers(200, {}), "protocol" },
      { side.answers(200, function(body)
        local w = side.welcome(body)
        w.certificate = other_side().welcome(body).certificate
        return w
      end), "protocol" },
      { side.answers(200, function(body)
        local w = side.welcome(body)
        w.node_id = "0someone"
        return w
      end), "protocol" },
      { side.answers(200, function(body)
        local w = side.welcome(body)
        w.raft_node_id = 3
        return w
      end), "protocol" },
    }
    local function changed(field, value)
      table.insert(cases, { side.answers(200, function(body)
        local w = side.welcome(body)
        w[field] = value
        return w
      end), "protocol" })
    end
    for _, wrong in ipairs { { first = "10.0.0.1:27242" }, { 7 }, { "no address" } } do changed("managers", wrong) end
    for _, wrong in ipairs { 0, -1, 1 << 53, 1.5 } do changed("raft_node_id", wrong) end
    changed("name", "\27[2J")
    for _, doc in ipairs { "text", 7, false } do table.insert(cases, { side.answers(200, doc), "protocol" }) end
    for _, id in ipairs { "x; reboot", "\27[2J", "", ("a"):rep(65) } do
      table.insert(cases, { side.answers(202, { pending = { id = id } }), "protocol" })
    end
    table.insert(cases, { side.answers(202, 7), "protocol" })
    for i, case in ipairs(cases) do
      fake.answer = case[1]
      local answer, err = run { address = "h", token = side.token }
      assert.is_nil(answer, i)
      assert.equal(case[2], err.code, i)
      untouched()
    end
    -- And then it works, with the same key.
    local key = fake.files["/dir/tls/node.key"]
    fake.answer = side.answers(200, side.welcome)
    assert(run({ address = "h", token = side.token }, side))
    assert.equal(key, fake.files["/dir/tls/node.key"])
  end))

  it("asks nobody when its own ports are taken", fake.task(function()
    local uv = require "luv"
    local tcp = uv.new_tcp()
    assert(tcp:bind("127.0.0.1", 0))
    assert(tcp:listen(1, function() end))
    fake.options.raft_port = tcp:getsockname().port
    local answer, err = run { address = "h", token = other_side().token }
    tcp:close()
    assert.is_nil(answer)
    assert.equal("in_use", err.code)
    assert.equal(0, #fake.requests)
    untouched()
  end))

  it("waits for an approval, showing both fingerprints and the command, and pins the CA it saw", fake.task(function()
    local side = other_side()
    local n, key, asked = 0, nil, {}
    fake.answer = function(opts)
      if opts.method == "GET" then return side.shows() end
      n = n + 1
      fake.now = fake.now + 3000
      asked[n] = json.decode(opts.body).csr
      key = crypto.key_load(fake.files["/dir/tls/node.key"])
      if n < 3 then
        return side.answers(202, { pending = { id = "abcdef0123", fingerprint = key:fingerprint(),
          expires = 1 } })(opts)
      end
      return side.answers(200, side.welcome)(opts)
    end
    local answer, err, said = run({ address = "h" }, side)
    assert(answer, err)
    -- What the key signs goes to managers of this CA only, and each time it is fresh.
    assert.same({ "GET", "/v1/version", true }, { fake.requests[1].method, fake.requests[1].path,
      fake.requests[1].tls.trust_any })
    local digest = crypto.unhex(crypto.cert_info(side.ca).digest)
    for i = 1, 3 do
      assert.same({ pin = digest }, fake.requests[i + 1].tls)
      local _, states = crypto.csr_check(asked[i])
      assert.equal(statement.make(digest, fake.now - 3000 * (4 - i)), states)
    end
    assert.equal(1, select(2, said:gsub("node approve", "")))
    assert.truthy(said:find("symphony node approve abcdef0123 --fingerprint " .. key:fingerprint(), 1, true))
    assert.truthy(said:find(crypto.cert_info(side.ca).digest, 1, true))
    -- As spec/cluster reads it: the first fingerprint is the key's.
    assert.equal(key:fingerprint(), said:match("[Ff]ingerprint%D-(%x[%x:]+%x)"))
  end))

  it("does not go on with a manager that shows another CA while it waits", fake.task(function()
    local side = other_side()
    local n = 0
    fake.answer = function(opts)
      if opts.method == "GET" then return side.shows() end
      n = n + 1
      if n == 1 then return side.answers(202, { pending = { id = "abcdef0123", expires = 1 } })(opts) end
      return other_side().answers(200, other_side().welcome)(opts)
    end
    local answer, err = run { address = "h" }
    assert.is_nil(answer)
    assert.equal("protocol", err.code)
    untouched()
  end))

  it("is given up with the request, and can be said again", fake.task(function()
    local side = other_side()
    fake.answer = side.answers(202, { pending = { id = "abcdef0123", expires = 1 } })
    local task = async.spawn(function() return run { address = "h" } end)
    async.sleep(10)
    local answer, err = run { address = "h" }
    assert.is_nil(answer)
    assert.equal("busy", err.code)
    assert.equal("wait until it has ended, or end it with Ctrl-C where it was typed", err.hint)
    task:cancel()
    task:wait()
    untouched()
    fake.answer = side.answers(200, side.welcome)
    assert(run({ address = "h", token = side.token }, side))
  end))

  it("stays a member when the node cannot start, and says so", fake.task(function()
    local side = other_side()
    fake.answer = side.answers(200, side.welcome)
    fake.start_error = { code = "in_use", message = "raft port 15760: address already in use" }
    local answer, err = run { address = "h", token = side.token }
    assert.is_nil(answer)
    assert.equal("in_use", err.code)
    assert.truthy(err.message:find("admitted"))
    assert.is_string(fake.files["/dir/key.json"])
  end))

  it("is refused by a member, by a removed one, and over somebody's log", fake.task(function()
    fake.make()
    local before = fake.files["/dir/key.json"]
    local answer, err = run { address = "h", token = other_side().token }
    assert.is_nil(answer)
    assert.equal("exists", err.code)
    assert.equal(before, fake.files["/dir/key.json"])
    fake.quiet()
    fake.reset()
    fake.files["/dir/raft/metadata1"] = "x"
    answer, err = run { address = "h", token = other_side().token }
    assert.is_nil(answer)
    assert.equal("exists", err.code)
    assert.truthy(err.message:find("metadata1"))
  end))

  it("takes the place of an init that never came to its end", fake.task(function()
    fake.files["/dir/key.json"] = "x"
    identity.me = { phase = "init", cluster_id = "c" }
    local side = other_side()
    fake.answer = side.answers(200, side.welcome)
    assert(run({ address = "h", token = side.token }, side))
  end))

  it("frees its lock whatever happens", fake.task(function()
    run { address = "h", token = "nonsense" }
    run { address = "h", token = other_side().token, name = "a b" }
    local lock <close> = busy.take("test")
    assert.truthy(lock)
    assert.is_nil(state.text("/none"))
  end))
end)
