local fake = require "spec.unit.fake"

local nodes, reads, read_error, state, daemon = {}, 0, nil, "leader", "manager"
local mono = 1000000
fake.module("sys", {
  now = os.time,
  mono_ms = function() return mono end,
  resume = coroutine.resume,
  options = function()
    return { role = daemon, services = { "block" } }
  end,
})
fake.module("store", {
  get = function(key)
    return nodes[key]
  end,
})
fake.module("raft", {
  read = function(_, cb)
    reads = reads + 1
    cb(read_error)
  end,
  status = function()
    if state == "closed" then
      return nil, { code = "closed", message = "not started" }
    end
    return { state = state }
  end,
})

local async = require "symphony.async"
local errors = require "symphony.errors"
local router = require "symphony.api.router"

local function ask(method, path, fields)
  local req = fake.request(method, path, fields)
  router.dispatch(req)
  fake.loop()
  return req
end

local function tls(fields)
  fields.tls = true
  return { peer = fields }
end

describe("router", function()
  before_each(function()
    router.reset()
    nodes, reads, read_error, state, daemon = {}, 0, nil, "leader", "manager"
    fake.logged = {}
  end)

  it("finds the route and its parameters", function()
    router.route("GET", "/v1/nodes", {}, function()
      return 200, { all = true }
    end)
    router.route("GET", "/v1/nodes/{id}", {}, function(req, params)
      return 200, { id = params.id, path = req.path }
    end)
    router.route("POST", "/v1/nodes/{id}/labels/{name*}", {}, function(_, params)
      return 201, params
    end)
    router.route("GET", "/v1/a.b", {}, function()
      return 200, {}
    end)
    assert.same({ all = true }, ask("GET", "/v1/nodes"):json())
    assert.same({ id = "x-1", path = "/v1/nodes/x-1" }, ask("GET", "/v1/nodes/x-1"):json())
    local req = ask("POST", "/v1/nodes/n/labels/a/b c")
    assert.same({ id = "n", name = "a/b c" }, req:json())
    assert.same({ 201, "application/json" }, { req.status, req.ctype })
    assert.equal(404, ask("GET", "/v1/aXb").status)
    assert.equal(404, ask("GET", "/v1/nodes/").status)
    assert.equal(404, ask("GET", "/v1/nodes/a/b").status)
    req = ask("DELETE", "/v1/nodes")
    assert.equal(405, req.status)
    assert.equal("allowed: GET", req:json().error.hint)
  end)

  it("says at the socket of a worker that it is none of a manager's", function()
    assert.equal("not_found", ask("GET", "/v1/backup"):json().error.code)
    daemon = "block"
    local req = ask("GET", "/v1/backup")
    assert.same({ 409, "conflict" }, { req.status, req:json().error.code })
    assert.truthy(req:json().error.hint:find("of a manager", 1, true))
    assert.equal("not_found", ask("GET", "/v1/backup", tls { cn = "a", ou = "worker" }):json().error.code)
  end)

  it("answers with text and headers as they are given", function()
    router.route("GET", "/t", {}, function()
      return 200, "hello", { ctype = "text/plain", extra = "X: y\r\n" }
    end)
    local req = ask("GET", "/t")
    assert.same({ 200, "hello", "text/plain", "X: y\r\n" }, { req.status, req.answer, req.ctype, req.extra })
  end)

  it("answers errors, raised or returned", function()
    router.route("GET", "/raised", {}, function()
      errors.raise("conflict", "no \xff", "look")
    end)
    router.route("GET", "/returned", {}, function()
      async.sleep(0)
      return nil, errors.new("no_quorum", "alone")
    end)
    local req = ask("GET", "/raised")
    assert.equal(409, req.status)
    assert.same({ code = "conflict", message = "no \u{FFFD}", hint = "look" }, req:json().error)
    assert.equal(503, ask("GET", "/returned").status)
    assert.same({}, fake.logged)
  end)

  it("keeps bugs to the log", function()
    router.route("GET", "/bug", {}, function()
      error("secret detail")
    end)
    router.route("GET", "/nothing", {}, function() end)
    router.route("GET", "/unfit", {}, function()
      return 200, { print }
    end)
    local req = ask("GET", "/bug")
    assert.equal(500, req.status)
    assert.equal("internal", req:json().error.code)
    assert.is_nil(req.answer:find("secret", 1, true))
    assert.truthy(fake.logged[1]:find("secret detail", 1, true))
    assert.truthy(fake.logged[1]:find("router_spec", 1, true))
    assert.equal(500, ask("GET", "/nothing").status)
    assert.equal(400, ask("GET", "/unfit").status)
  end)

  it("breaks off an answer that fails after its beginning", function()
    router.route("GET", "/s", {}, function(req)
      req:start(200, "text/plain")
      errors.raise("io", "disk")
    end)
    local req = ask("GET", "/s")
    assert.is_true(req.aborted)
  end)

  it("leaves streams alone", function()
    router.route("GET", "/s", { timeout_ms = false }, function(req)
      req:start(200, "text/plain")
      return router.STREAM
    end)
    local req = ask("GET", "/s")
    assert.same({ 200, nil, nil }, { req.status, req.answer, req.aborted })
  end)

  it("gives up on a handler that hangs", function()
    router.route("GET", "/slow", { timeout_ms = 5 }, function()
      async.event():wait()
    end)
    local req = ask("GET", "/slow")
    assert.same({ 504, "timeout" }, { req.status, req:json().error.code })
  end)

  describe("lets in", function()
    local function kinds(auth)
      router.reset()
      local seen
      router.route("GET", "/", { auth = auth }, function(_, _, who)
        seen = who
        return 200, {}
      end)
      return function(fields)
        seen = nil
        local req = ask("GET", "/", fields)
        return req.status, seen
      end
    end

    it("the control socket, managers and operators by default", function()
      local get = kinds(nil)
      nodes["/node/m"] = { value = '{"role": "manager", "fingerprint": "f"}' }
      nodes["/node/w"] = { value = '{"role": "worker", "fingerprint": "f"}' }
      local status, who = get()
      assert.same({ 200, "control" }, { status, who.kind })
      status, who = get(tls { cn = "m", ou = "manager", fingerprint = "f" })
      assert.same({ 200, "manager", "m", "f" }, { status, who.kind, who.id, who.node.fingerprint })
      nodes["/client/root"] = { value = '{"role": "operator", "fingerprint": "f"}' }
      nodes["/client/r"] = { value = '{"role": "reader", "fingerprint": "f"}' }
      status, who = get(tls { cn = "root", ou = "operator", fingerprint = "f" })
      assert.same({ 200, "operator", "root" }, { status, who.kind, who.id })
      for kind, text in pairs { operator = "to an operator", reader = "to a reader" } do
        router.route("GET", "/" .. kind, { auth = {} }, function() return 200, {} end)
        local req = ask("GET", "/" .. kind, tls { cn = kind:sub(1, 1) == "o" and "root" or "r", ou = kind,
          fingerprint = "f" })
        assert.truthy(req:json().error.message:find(text, 1, true), req.body)
      end
      assert.equal(403, (get(tls { cn = "w", ou = "worker", fingerprint = "f" })))
      assert.equal(403, (get(tls { cn = "r", ou = "reader", fingerprint = "f" })))
      assert.equal(401, (get(tls {})))
    end)

    it("nodes for what they are in the state, whatever their certificate says", function()
      local get = kinds { manager = true }
      nodes["/node/x"] = { value = '{"role": "worker", "fingerprint": "f"}' }
      assert.equal(403, (get(tls { cn = "x", ou = "manager", fingerprint = "f" })))
      nodes["/node/x"] = { value = '{"role": "manager", "fingerprint": "new"}' }
      assert.equal(403, (get(tls { cn = "x", ou = "manager", fingerprint = "old" })))
    end)

    it("no node that the state does not have, after a look that is sure", function()
      local get = kinds { manager = true }
      assert.equal(403, (get(tls { cn = "gone", ou = "manager" })))
      assert.equal(1, reads)
      read_error = { code = "no_quorum", message = "alone" }
      assert.equal(503, (get(tls { cn = "gone", ou = "manager" })))
    end)

    it("strangers no more often to a look that is sure than the quorum bears", function()
      local get = kinds { manager = true }
      nodes["/node/m"] = { value = '{"role": "manager", "fingerprint": "f"}' }
      local codes = {}
      for _ = 1, 300 do
        local status = get(tls { cn = "gone", ou = "manager" })
        codes[status] = (codes[status] or 0) + 1
      end
      assert.same({ [403] = 100, [503] = 200 }, codes)
      assert.equal(100, reads)
      assert.equal(403, (get(tls { cn = "other", ou = "manager" })))
      assert.equal(200, (get(tls { cn = "m", ou = "manager", fingerprint = "f" })))
      mono = mono + 1000
      assert.equal(403, (get(tls { cn = "gone", ou = "manager" })))
    end)

    it("client certificates for what the state says of their key, after a look that is sure", function()
      local get = kinds { operator = true, expired = true, reader = false }
      nodes["/client/a"] = { value = '{"role": "operator", "fingerprint": "f"}' }
      assert.equal(200, (get(tls { cn = "a", ou = "operator", fingerprint = "f" })))
      assert.equal(0, reads)
      assert.equal(403, (get(tls { cn = "a", ou = "operator", fingerprint = "old" })))
      assert.equal(1, reads)
      assert.equal(403, (get(tls { cn = "gone", ou = "operator", fingerprint = "f" })))
      assert.equal(2, reads)
      assert.equal(403, (get(tls { cn = "a", ou = "operator", fingerprint = "f", expired = true })))
      -- A node's name is no client's, and the role is the state's.
      nodes["/node/n"] = { value = '{"role": "manager", "fingerprint": "f"}' }
      assert.equal(403, (get(tls { cn = "n", ou = "operator", fingerprint = "f" })))
      nodes["/client/a"] = { value = '{"role": "reader", "fingerprint": "f"}' }
      assert.equal(403, (get(tls { cn = "a", ou = "operator", fingerprint = "f" })))
      read_error = { code = "no_quorum", message = "alone" }
      assert.equal(503, (get(tls { cn = "gone", ou = "operator", fingerprint = "f" })))
    end)

    it("on a node without the state whom the managers have told of", function()
      local get = kinds { reader = true, worker = true }
      -- What a state might say is not asked.
      nodes["/client/lost"] = { value = '{"role": "reader", "fingerprint": "f"}' }
      nodes["/node/lost"] = { value = '{"role": "worker", "fingerprint": "f"}' }
      local people = { rita = { role = "reader", fingerprint = "f" }, otto = { role = "operator", fingerprint = "f" } }
      router.set_members(function(id)
        return id == "w" and { node_id = "w", role = "worker", fingerprint = "f" } or nil
      end, function(name) return people[name] end)
      local function asks(cn, ou, fingerprint, expired)
        return (get(tls { cn = cn, ou = ou, fingerprint = fingerprint or "f", expired = expired }))
      end
      assert.equal(200, asks("rita", "reader"))
      assert.equal(200, asks("w", "worker"))
      for _, who in ipairs { { "rita", "reader", "old" }, { "rita", "reader", "f", true }, { "otto", "operator" },
        { "rita", "worker" }, { "w", "reader" }, { "lost", "reader" }, { "lost", "worker" } } do
        assert.equal(403, asks(table.unpack(who, 1, 4)), who[1])
      end
      people.rita = nil -- revoked
      assert.equal(403, asks("rita", "reader"))
      assert.equal(0, reads)
      router.set_members(nil, nil)
    end)

    it("expired certificates only where they may", function()
      nodes["/node/m"] = { value = '{"role": "manager"}' }
      local expired = { cn = "m", ou = "manager", expired = true }
      assert.equal(403, (kinds { manager = true }(tls(expired))))
      local status, who = kinds { expired = true }(tls(expired))
      assert.same({ 200, "expired", "m" }, { status, who.kind, who.id })
    end)

    it("one that streams as long as it may", function()
      local auth = { manager = true, reader = true }
      local function again(peer)
        local ok, err
        fake.run(function() ok, err = pcall(router.recheck, { peer = peer }, auth) end)
        return ok or err.code
      end
      nodes["/client/r"] = { value = '{"role": "reader", "fingerprint": "f"}' }
      nodes["/client/o"] = { value = '{"role": "operator", "fingerprint": "f"}' }
      local reader = { tls = true, cn = "r", ou = "reader", fingerprint = "f", expires = os.time() + 100 }
      assert.is_true(again(reader))
      reader.expires = os.time() - 1
      assert.equal("expired", again(reader))
      assert.equal("denied", again { tls = true, cn = "o", ou = "operator", fingerprint = "f" })
      local peer = { tls = true, cn = "m", ou = "manager", fingerprint = "f" }
      nodes["/node/m"] = { value = '{"role": "manager", "fingerprint": "f"}' }
      assert.is_true(again(peer))
      nodes["/node/m"] = nil
      assert.equal("denied", again(peer))
    end)

    it("strangers only where they may", function()
      local status, who = kinds { none = true }(tls {})
      assert.same({ 200, "none" }, { status, who.kind })
    end)
  end)

  it("asks a route's guard first, also before it passes on", function()
    local asked, passed = 0, 0
    package.loaded["symphony.cluster.leader"] = { forward = function()
      passed = passed + 1
      return 200, {}
    end }
    state = "follower"
    router.route("POST", "/g", { leader_only = true, guard = function(req, who)
      asked = asked + 1
      assert.equal("control", who.kind)
      if req.body == "no" then errors.raise("busy", "later") end
    end }, function() error("does not lead") end)
    assert.equal(200, ask("POST", "/g").status)
    assert.equal(503, ask("POST", "/g", { body = "no" }).status)
    assert.same({ 2, 1 }, { asked, passed })
  end)

  it("passes on to the leader what is the leader's", function()
    local passed
    package.loaded["symphony.cluster.leader"] = {
      forward = function(_, params, who)
        passed = { params.id, who.kind }
        return 202, '{"from":"leader"}'
      end,
    }
    router.route("POST", "/l/{id}", { leader_only = true }, function()
      return 200, {}
    end)
    assert.equal(200, ask("POST", "/l/1").status)
    assert.is_nil(passed)
    state = "follower"
    local req = ask("POST", "/l/1")
    assert.same({ 202, '{"from":"leader"}' }, { req.status, req.answer })
    assert.same({ "1", "control" }, passed)
  end)

  it("says so when there is no node to lead", function()
    package.loaded["symphony.cluster.state"] = {
      ready = function()
        return nil, errors.new("no_cluster", "no cluster yet")
      end,
    }
    state = "closed"
    router.route("POST", "/l", { leader_only = true }, function() end)
    local req = ask("POST", "/l")
    assert.same({ 409, "no_cluster" }, { req.status, req:json().error.code })
  end)

  it("reads bodies", function()
    local body
    router.route("POST", "/b", {}, function(req)
      body = router.json(req)
      return 200, {}
    end)
    ask("POST", "/b", { body = '{"a": [1]}' })
    assert.same({ a = { 1 } }, body)
    ask("POST", "/b")
    assert.same({}, body)
    assert.equal(400, ask("POST", "/b", { body = "{" }).status)
    assert.equal(400, ask("POST", "/b", { body = "1" }).status)
  end)
end)
