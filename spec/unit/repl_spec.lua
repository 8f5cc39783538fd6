local fake = require "spec.unit.fake"

fake.module("store", {
  get = function(key)
    if key == "/closed" then
      return nil, { code = "closed", message = "not started" }
    end
    if key == "/client/o" then return { value = '{"role": "operator"}' } end
    return key == "/a" and { key = "/a", value = "1", create_revision = 1, mod_revision = 2, raw = true } or nil
  end,
  list = function()
    return {}
  end,
})

local async = require "symphony.async"
local heap = require "symphony.repl.heap"
local json = require "symphony.json"
local router = require "symphony.api.router"
local session = require "symphony.repl.session"

local state = { ready = function() return true end, list_raw = function() return {} end }

local function eval(s, code, opts)
  local printed = {}
  opts = opts or {}
  opts.out = function(text)
    printed[#printed + 1] = text
  end
  local results, err, more
  fake.run(function()
    local fn
    fn, err, more = session.compile(s, code, opts.name or "=lua")
    if fn then results, err = session.run(s, fn, opts) end
  end)
  if results then results.text = nil end
  return results, err, more, printed
end

describe("collecting garbage", function()
  it("comes to its end, however much there is", function()
    local kept = {}
    fake.run(function()
      for size = 20000, 400000, 20000 do
        for i = #kept + 1, size do kept[i] = { tostring(i) } end
        async.with_timeout(20000, heap.collect, 2000)
      end
    end)
  end)
end)

describe("a session", function()
  before_each(function() package.loaded["symphony.cluster.state"] = state end)

  it("takes expressions and statements", function()
    local s = session.new()
    assert.same({ n = 1, 3 }, (eval(s, "1 + 2")))
    assert.same({ n = 3, 1, nil, 3 }, (eval(s, "1, nil, 3")))
    assert.same({ n = 0 }, (eval(s, "x = 5")))
    assert.same({ n = 1, 5 }, (eval(s, "x")))
    assert.same({ n = 1, 5 }, (eval(s, "_")))
    assert.same({ n = 1, "a" }, (eval(s, "...", { args = { "a" } })))
    assert.is_nil(rawget(_G, "x"))
  end)

  it("prints to its own", function()
    local _, _, _, printed = eval(session.new(), "print(1, nil, 'x')")
    assert.same({ "1\tnil\tx\n" }, printed)
    local texts = {}
    _, _, _, printed = eval(session.new(), "io.write('a', 1):write('b') io.stderr:write('c')", {
      err = function(text) texts[#texts + 1] = text end,
    })
    assert.same({ { "a1", "b" }, { "c" } }, { printed, texts })
  end)

  it("asks for more when the code is not finished", function()
    for _, code in ipairs { "for i = 1, 2 do", "f(", "x = {", "[[a", "if x then" } do
      local results, err, more = eval(session.new(), code)
      assert.is_nil(results)
      assert.is_true(more, code)
      assert.equal("syntax", err.code)
    end
    local _, err, more = eval(session.new(), "x = = 1")
    assert.is_falsy(more)
    assert.truthy(err.message:find("near '='", 1, true))
  end)

  it("shows errors with a traceback", function()
    local s = session.new()
    local _, err = eval(s, "local function f() error('oops') end f()", { name = "=prompt" })
    assert.truthy(err.message:find("oops", 1, true))
    assert.truthy(err.trace:find("prompt:1: in", 1, true))
    _, err = eval(s, "error({})")
    assert.equal("(the error is a table)", err.message)
    _, err = eval(s, "error(setmetatable({}, {__tostring = function() error('no') end}))")
    assert.equal("(the error is a table)", err.message)
    _, err = eval(s, "state.get('/closed')")
    assert.equal("closed", err.code)
  end)

  it("may wait", function()
    assert.same({ n = 1, "awake" }, (eval(session.new(), "sleep(0.001) return 'awake'")))
  end)

  it("shows the state", function()
    local s = session.new()
    assert.same({ key = "/a", value = "1", create_revision = 1, mod_revision = 2 }, (eval(s, "state.get('/a')"))[1])
    assert.same({ n = 1 }, (eval(s, "state.get('/b')")))
    assert.same({}, (eval(s, "state.list('/')"))[1])
    package.loaded["symphony.cluster.state"] = {
      ready = function() return nil, { code = "x", message = "a worker" } end,
    }
    for _, code in ipairs { "state.get('/a')", "state.list()", "state.count()", "state.revision()", "kv.put('a', 1)",
      "kv.txn { ops = {} }", "watch('/', print)", "kv.watch('', print)", "state.each('/', print)" } do
      assert.equal("x", select(2, eval(s, code)).code, code)
    end
  end)

  it("reads and writes keys as users see them", function()
    local submitted, asked
    package.loaded["symphony.cluster.state"] = {
      ready = function() return true end,
      read = function()
        return { stale = false }
      end,
      text = function(key)
        if key == "/kv/k" then
          return "v", { key = key, value = "v", create_revision = 1, mod_revision = 2 }
        end
      end,
      list_raw = function(prefix, opts)
        asked = opts
        if prefix == "/kv/many" then
          return { { key = "/kv/many1\n", value = "v", create_revision = 1, mod_revision = 2 } }, true
        end
        if prefix == "/kv/large" then
          local rows = {}
          for i = 1, 4 do
            rows[i] = { key = prefix .. i, value = ("x"):rep(400000), create_revision = 1, mod_revision = 2 }
          end
          return rows, false
        end
        return { { key = prefix .. "1", value = "v", create_revision = 1, mod_revision = 2 } }
      end,
      submit = function(txn)
        submitted = txn
        return { status = "applied", revision = 7 }
      end,
    }
    local s = session.new()
    assert.same({ key = "k", value = "v", create_revision = 1, mod_revision = 2 }, (eval(s, "kv.get('k')"))[1])
    assert.same({ n = 1 }, (eval(s, "kv.get('none')")))
    assert.equal("a1", (eval(s, "kv.ls('a')"))[1][1].key)
    assert.same({ 1000, 1 << 20 }, { asked.limit, asked.bytes })
    local notes = {}
    local function note(text) notes[#notes + 1] = text end
    local many = eval(s, "kv.ls('many', { limit = 1, after = 'many0' })", { note = note })
    assert.same({ 1, 1, "/kv/many0" }, { #many[1], asked.limit, asked.after })
    assert.same({ [[there are more keys than these 1: kv.ls("many", { after = "many1\n" })]] }, notes)
    assert.equal(2, #eval(s, "kv.ls('large')", { note = note })[1])
    assert.equal([[there are more keys than these 2: kv.ls("large", { after = "large2" })]], notes[2])
    assert.same({ n = 2, "a1=v", false }, (eval(s, [[
      local seen
      kv.each("a", function(key, value) seen = key .. "=" .. value end)
      return seen, (pcall(kv.each, "a", function() error("oops") end))]])))
    eval(s, "kv.ls('', { limit = 1 << 40 })")
    assert.equal(1000, asked.limit)
    for _, limit in ipairs { "0", "2.5", "'x'" } do
      assert.equal("invalid", select(2, eval(s, ("kv.ls('', { limit = %s })"):format(limit))).code)
    end
    assert.same({ n = 1, 7 }, (eval(s, "kv.put('k', 5)")))
    assert.same({ compare = {}, ops = { { put = "/kv/k", value = "5" } } }, submitted)
    eval(s, "kv.rm('k')")
    assert.same({ { delete = "/kv/k" } }, submitted.ops)
    local _, err = eval(s, "kv.get('')")
    assert.equal("invalid", err.code)
  end)

  it("says what is wrong with arguments, and nothing of the daemon's own code", function()
    local ready = function() return true end
    package.loaded["symphony.cluster.state"] = { ready = ready, read = ready, list_raw = function() return {} end }
    local s = session.new()
    for _, code in ipairs { "state.get({})", "state.get()", "state.list(5)", "state.list('', 5)",
      "state.list('', { after = {} })", "state.each(5, print)", "state.each('/', nil)", "state.count({})",
      "kv.get({})", "kv.put({}, 1)", "kv.put('a', {})", "kv.rm(5)", "kv.ls(5)", "kv.ls('', 5)",
      "kv.ls('', { after = 5 })", "kv.each('app/', nil)", "kv.each('app/')", "kv.each(nil, print)", "kv.txn(5)",
      "kv.watch('', 5)", "watch('', nil)", "watch({}, print)", "events(5)", "events({ limit = 'x' })",
      "events({ since = 'x' })", "events({ node = {} })", "events({ kind = 5 })", "nodes(5)", "node({})", "node()",
      "sleep('x')", "gather(5)", "collectgarbage('setpause')", "collectgarbage('stop')", "collectgarbage('nonsense')",
      "collectgarbage(5)" } do
      local results, err = eval(s, code)
      assert.is_nil(results, code)
      assert.equal("invalid", err.code, code .. ": " .. err.message)
      assert.is_nil(err.message:find(".lua:", 1, true), code .. ": " .. err.message)
    end
    for _, code in ipairs { "collectgarbage('count')", "collectgarbage()", "collectgarbage('collect')" } do
      assert.is_number((assert(eval(s, code)))[1])
    end
  end)

  it("does not end the daemon", function()
    local s = session.new()
    for _, code in ipairs { "os.execute('true')", "io.read()", "io.open('/dev/zero')" } do
      local _, err = eval(s, code)
      assert.truthy(err.message:find("would stop the daemon", 1, true))
    end
    assert.equal("string", type((eval(s, "os.date()"))[1]))
    assert.same({ n = 0, exit = 3 }, (eval(s, "os.exit(3)")))
    assert.same({ n = 0, exit = 1 }, (eval(s, "os.exit(false)")))
    assert.same({ n = 0, exit = 0 }, (eval(s, "local function f() os.exit() end f()")))
    local _, err = eval(s, "coroutine.yield(1)")
    assert.truthy(err.message:find("outside a coroutine", 1, true))
    assert.same({ n = 2, false, "no!" }, (eval(s, "xpcall(error, function(m) return m .. '!' end, 'no')")))
    -- What it loads is its own too.
    assert.same({ n = 1, 4 }, (eval(s, "load('loaded = 4')() return loaded")))
    assert.same({ n = 1, 5 }, (eval(s, "_G.loaded = 5 return loaded")))
    local path = os.tmpname()
    local file = io.open(path, "w")
    file:write("#!shebang\nloaded = 6\nreturn ...")
    file:close()
    assert.same({ n = 1, 6 }, (eval(s, ("dofile(%q) return loaded"):format(path))))
    os.remove(path)
    assert.same({ n = 2, nil, "/dev/zero is no file" }, (eval(s, "loadfile('/dev/zero')")))
    assert.same({ n = 2, nil, true }, (eval(s, "local f, err = loadfile('/none') return f, err ~= nil")))
    assert.is_nil(rawget(_G, "loaded"))
  end)

  it("waits in coroutines of its own too", function()
    local s = session.new()
    local code = [[
      local seen = {}
      local co = coroutine.wrap(function(a)
        sleep(0.001)
        seen[1] = a
        local b = coroutine.yield("y")
        local inner = coroutine.create(function() sleep(0.001) print("inside") error("oops", 0) end)
        local ok, err = coroutine.resume(inner)
        seen[2], seen[3] = b, err
        return "end"
      end)
      return co(1), co(2), table.unpack(seen)]]
    local results, _, _, printed = eval(s, code)
    assert.same({ n = 5, "y", "end", 1, 2, "oops" }, results)
    assert.same({ "inside\n" }, printed)
    local _, err = eval(s, "coroutine.wrap(function() kv.get('') end)()")
    assert.equal("invalid", err.code)
  end)

  it("runs several things at once", function()
    local s = session.new()
    local code = "gather { function() sleep(0.002) return 'a' end, function() return 'b' end }"
    assert.same({ "a", "b" }, (eval(s, code))[1])
    local _, err = eval(s, "gather { function() error('oops') end }")
    assert.truthy(err.message:find("oops", 1, true))
  end)

  it("has Lua's library for itself", function()
    local before = {}
    for _, name in ipairs { "string", "table", "math", "utf8", "os", "io", "coroutine", "debug", "package" } do
      before[name] = {}
      for key, v in pairs(_G[name]) do before[name][key] = v end
    end
    local s = session.new()
    for _, code in ipairs { "string.rep = nil", "function table.insert() end", "json.encode = nil", "io.open = nil",
      "require('string').upper = nil", "package.loaded.math.floor = 1", "debug.traceback = nil", "kv.get = nil",
      "package.path = ''", "package.loaded.string = nil", "package.loaded['symphony.json'] = 1", "_G.print = nil",
      "os.time = nil", "coroutine.create = nil", "utf8 = nil", "tostring = nil",
      "local all = _G for name in pairs(all) do all[name] = nil end",
    } do
      local _, err = eval(s, code)
      assert.is_nil(err, code)
    end
    for name, t in pairs(before) do
      for key, v in pairs(t) do assert.equal(v, _G[name][key], name .. "." .. key) end
    end
    assert.equal(json, package.loaded["symphony.json"])
    assert.same({ n = 2, "A", '{"a":1}' }, (eval(session.new(), "return ('a'):upper(), json.encode { a = 1 }")))
    -- The daemon's modules are the daemon's own.
    s = session.new()
    assert.equal(json, (eval(s, "require 'symphony.json'"))[1])
    assert.equal(s.env.string, (eval(s, "require 'string'"))[1])
    assert.same({ n = 2, true, false }, (eval(s, [[
      local seen, own = {}, string
      for name, module in pairs(package.loaded) do seen[name] = module end
      return seen.string == own and seen["symphony.json"] ~= nil, (pcall(require, 5))]])))
    assert.same({ n = 1, 7 }, (eval(s, "package.loaded.mine = 7 return require 'mine'")))
    assert.is_nil(package.loaded.mine)
  end)

  it("cuts errors that are long", function()
    local s = session.new()
    for _, code in ipairs { "error(('\\xff'):rep(1 << 24))", "error({ code = 'x', message = ('x'):rep(1 << 20) })",
      "local " .. ("x"):rep(40000) .. " = error " .. ("x"):rep(40000) .. "('oops')",
      "x = '" .. ("\\xff"):rep(100000) .. "' 5" } do
      local err = select(2, eval(s, code))
      assert.is_true(#err.message < 10000 and #(err.trace or "") < 40000, code:sub(1, 40))
    end
  end)

  it("helps", function()
    local function help(code)
      local _, _, _, printed = eval(session.new(), code)
      return table.concat(printed)
    end
    assert.truthy(help("help()"):find("kv.put(key, value)", 1, true))
    local kv = help("help(kv)")
    assert.truthy(kv:find("^kv: ") and kv:find("kv.rm(key) -> revision", 1, true))
    assert.truthy(help("help(kv.get)"):find("^kv.get%(key%) %-> entry\nThe entry of a key"))
    assert.equal(help("help(kv.get)"), help("help('kv.get')"))
    assert.truthy(help("help(require('symphony.async').sleep)"):find("Waits @ms milliseconds", 1, true))
    assert.truthy(help("help(string.rep)"):find("in C", 1, true))
    assert.truthy(help("help('none')"):find('Nothing here is called "none"', 1, true))
    assert.truthy(help("help(5)"):find("A number", 1, true))
    assert.truthy(help("help('service')"):find("reconcile", 1, true))
    assert.truthy(help("help('commands')"):find("commands.rm(kind)", 1, true))
    assert.truthy(help("function list() end help(list)"):find("no comment", 1, true), "a policy's is not meant")
    assert.is_true(#help("local t = {} for i = 1, 1e5 do t['f' .. i] = print end help(t)") < 20000)
    assert.truthy(help("help(load('', '@/dev/zero.lua'))"):find("no comment", 1, true))
    assert.truthy(help("help({f = print})"):find("functions f", 1, true))
  end)
end)

-- What the prompt hands to the daemon's own code, which runs without the guard.
describe("values of the code's own", function()
  local sys = require "sym.sys"
  local real, loaded, on, strays = {}, {}, setmetatable({}, { __mode = "k" }), 0

  -- Notes which coroutine is guarded while it calls fn.
  local function noting(flag, protected)
    return function(...)
      local co = coroutine.running()
      local before = on[co]
      on[co] = flag
      local results = table.pack(pcall(protected, ...))
      on[co] = before
      if not results[1] then error(results[2], 0) end
      return table.unpack(results, 2, results.n)
    end
  end

  local function stray()
    if not on[coroutine.running()] then strays = strays + 1 end
  end

  -- A table whose every metamethod notes whether it is called where nothing would stop it.
  local function trap(t)
    local mt = {}
    for name in ([[index newindex call tostring eq lt le len concat pairs close add sub mul div mod pow unm idiv band
      bor bxor bnot shl shr]]):gmatch "%l+" do
      mt["__" .. name] = stray
    end
    return setmetatable(t, mt)
  end

  local function use(v)
    return tostring(v), v == {}, pcall(function() return v < 1 or v.x or #v end)
  end

  local FAKES = {
    ["symphony.cluster.state"] = {
      ready = function() return true end, read = function() return {} end, text = function() end,
      list_raw = function(prefix, opts)
        use(prefix)
        use(opts and opts.after)
        return { { key = prefix .. "1", value = "v" } }, false
      end,
      submit = function() return { status = "applied", revision = 7 } end,
    },
    ["symphony.cluster.nodes"] = { get = use, list = function()
      return { { name = "a", labels = { zone = "x" } } }
    end },
    ["symphony.cluster.members"] = { list = function() return {} end, overview = function() return {} end },
    ["symphony.cluster.events"] = { node_id = use, list = function(want)
      for _, v in pairs(want) do use(v) end
      return {}
    end },
  }

  before_each(function()
    strays = 0
    real.guarded, real.unguarded = sys.guarded, sys.unguarded
    sys.guarded, sys.unguarded = noting(true, real.guarded), noting(false, real.unguarded)
    for name, module in pairs(FAKES) do loaded[name], package.loaded[name] = package.loaded[name], module end
  end)
  after_each(function()
    sys.guarded, sys.unguarded = real.guarded, real.unguarded
    for name in pairs(FAKES) do package.loaded[name] = loaded[name] end
  end)

  it("are read only where the guard can stop them", function()
    for _, code in ipairs { "kv.put('k', T)", "kv.put(T, 1)", "kv.get(T)", "kv.rm(T)", "kv.ls(T)", "kv.ls('', T)",
      "kv.ls('', { limit = T })", "kv.ls('', { after = T })", "kv.each(T, print)", "kv.each('a', T)",
      "kv.each('a', function() return T end)", "kv.txn(T)", "kv.txn { ops = T }", "kv.txn { ops = { T } }",
      "kv.txn { ops = { { put = T, value = T } } }", "kv.txn { compare = { { key = 'k', value = T } }, ops = {} }",
      "kv.txn { compare = T, ops = T }", "kv.watch(T, T)", "state.get(T)", "state.list(T)", "state.list('', T)",
      "state.count(T)", "state.each(T, print)", "state.each('', T)", "watch(T, print)", "watch('/', T)", "sleep(T)",
      "gather(T)", "gather { T }", "gather { function() return nil, T end }", "gather { function() error(T) end }",
      "nodes(T)", "nodes { name = T }", "nodes { labels = T }", "nodes { labels = { zone = T } }", "nodes { [T] = 1 }",
      "node(T)", "events(T)", "events { since = T }", "events { limit = T, node = T, [T] = T }", "help(T)", "print(T)",
      "io.write(T)", "io.stderr:write(T)", "return T", "error(T)", "error({ code = T, message = T })", "os.exit(T)",
      "collectgarbage(T)", "require(T)", "loadfile(T)", "load(T)", "show(T)", "kv = T help(T)", "_ENV[T] = T help(T)",
      "setmetatable(_G, getmetatable(T)) return 1",
      "local c <close> = T sleep(0)",
    } do
      local s = session.new()
      s.env.T = trap { trap { key = "k" }, trap {} }
      eval(s, code)
      assert.equal(0, strays, code)
    end
  end)

  it("are not taken for what coroutines wait for", function()
    local s = session.new()
    s.env.stray = stray
    for _, made in ipairs { "setmetatable({}, { __eq = function() return true end })", "nil", "{}" } do
      local results = eval(s, ([[
        local co = coroutine.create(function() coroutine.yield(%s, stray, { n = 0 }) return "end" end)
        return coroutine.resume(co), coroutine.resume(co)]]):format(made))
      assert.same({ true, true, "end" }, results and table.move(results, 1, 3, 1, {}))
    end
    assert.equal(0, strays)
  end)

  it("are called where the guard can stop them", function()
    local s, called = session.new(), 0
    s.env.call = function()
      stray()
      called = called + 1
      return false
    end
    for _, code in ipairs { "gather { call, call }", "kv.each('', call)", "state.each('', call)" } do
      called = 0
      local _, err = eval(s, code)
      assert.same({ nil, true, 0 }, { err, called > 0, strays }, code)
    end
  end)
end)

describe("POST /v1/lua", function()
  router.reset()
  require("symphony.repl.server").routes(router)

  local function post(path, body, peer)
    local req = fake.request("POST", path, { body = json.encode(body), peer = peer })
    router.dispatch(req)
    return req
  end

  local function start(body, peer)
    return post("/v1/lua", body, peer)
  end

  local function run(body)
    local req = start(body)
    fake.loop()
    local seen = { out = "" }
    for _, message in ipairs(req.status == 200 and req:messages() or {}) do
      seen.out = seen.out .. (message.out or "")
      for k, v in pairs(message) do
        seen[k] = k == "out" and seen.out or v
      end
    end
    return seen, req
  end

  it("answers with what was printed, the values and an exit status", function()
    assert.same({ out = "hi\n", result = "1\n\"x\"\n", exit = 0 }, (run { code = "print('hi') return 1, 'x'" }))
    assert.same({ out = "", exit = 0 }, (run { code = "local x = 1" }))
    assert.same({ out = "", result = '{"a":1}\n', exit = 0 }, (run { code = "{a = 1}", json = true }))
    assert.same({ out = "", result = "[1,null]\n", exit = 0 }, (run { code = "1, nil", json = true }))
    assert.same({ out = "", result = "null\n", exit = 0 }, (run { code = "local x", json = true }))
  end)

  it("answers with errors", function()
    local seen = run { code = "error('oops')" }
    assert.equal(1, seen.exit)
    assert.truthy(seen.error.message:find("oops", 1, true))
    assert.truthy(seen.error.trace:find("traceback", 1, true))
    seen = run { code = "f(" }
    assert.same({ 1, true, "syntax" }, { seen.exit, seen.more, seen.error.code })
    seen = run { code = "print", json = true }
    assert.same({ 1, "invalid" }, { seen.exit, seen.error.code })
    -- As a command with that error ends.
    seen = run { code = "require('symphony.errors').raise('no_quorum', 'nobody answers')" }
    assert.same({ 5, "no_quorum" }, { seen.exit, seen.error.code })
  end)

  it("keeps sessions apart, and forgets what has none", function()
    local a, b = run { code = "x = 1", session = "new" }, run { code = "x = 2", session = "new" }
    assert.equal("1\n", run({ code = "x", session = a.session }).result)
    assert.equal("2\n", run({ code = "x", session = b.session }).result)
    assert.equal("nil\n", run({ code = "x" }).result)
    local _, req = run { code = "x", session = "unknown" }
    assert.equal(404, req.status)
  end)

  it("lets a session do one thing at a time", function()
    local id = run({ code = "1", session = "new" }).session
    start { code = "sleep(0.01)", session = id }
    local _, req = run { code = "1", session = id }
    assert.equal(503, req.status)
    assert.equal("1\n", run({ code = "1", session = id }).result)
  end)

  it("does so also while it collects what others have left", function()
    local id = run({ code = "1", session = "new" }).session
    local large = ("x"):rep(50 << 20)
    start { code = "sleep(0.01)", session = id }
    assert.equal(503, select(2, run { code = "1", session = id }).status)
    assert.equal(50 << 20, #large)
  end)

  it("gives arguments also to a session that has made its globals its own", function()
    local id = run({ code = "setmetatable(_G, { __newindex = error })", session = "new" }).session
    assert.equal('"x"\n', run({ code = "return arg[1]", args = { "x" }, session = id }).result)
  end)

  it("holds only so many sessions", function()
    local first = run({ code = "1", session = "new" }).session
    for _ = 1, 64 do
      run { code = "1", session = "new" }
    end
    local _, req = run { code = "1", session = first }
    assert.equal(404, req.status)
  end)

  it("prints long texts in pieces, and errors on the other output", function()
    local req = start { code = "print(('x'):rep(200000)) io.stderr:write('oops') return ('y'):rep(70000)" }
    fake.loop()
    local out, parts, result, err = "", 0, "", nil
    for _, message in ipairs(req:messages()) do
      out, result, err = out .. (message.out or ""), result .. (message.result or ""), message.err or err
      if message.out then
        parts = parts + 1
        assert.is_true(#message.out <= 65536)
      end
    end
    assert.equal(("x"):rep(200000) .. "\n", out)
    assert.equal(4, parts)
    assert.equal("oops", err)
    assert.truthy(result:find('^"y+" %-%-%[%[ and 4464 more bytes %]%]\n$'))
  end)

  it("ends with the status of os.exit", function()
    local seen = run { code = "print('a') os.exit(7) print('b')" }
    assert.same({ out = "a\n", ended = true, exit = 7 }, seen)
  end)

  it("ends with an error also when nothing has made one of what was raised", function()
    local seen = run { code = 'error(require("symphony.repl.raised").EXIT)' }
    assert.same({ error = { code = "error", message = "os.exit" }, exit = 1, out = "" }, seen)
    local sys = require "sym.sys"
    local real, calls = sys.guarded, 0
    function sys.guarded(...)
      calls = calls + 1
      if calls == 2 then return false, "not enough memory" end -- as the values are shown
      return real(...)
    end
    seen = run { code = "return 1" }
    sys.guarded = real
    assert.same({ error = { code = "error", message = "not enough memory" }, exit = 1, out = "" }, seen)
  end)

  it("gives a script its arguments", function()
    assert.equal('"s.lua"\n"x"\n"x"\n', run({ code = "return arg[0], arg[1], ...", name = "@s.lua",
      args = { "x" } }).result)
  end)

  it("shows in colours if asked", function()
    assert.equal("\27[32m\"a\"\27[0m\n", run({ code = "'a'", color = true }).result)
  end)

  it("stops what runs when asked, and keeps the session", function()
    local function ask(body)
      local req = post("/v1/lua/cancel", body)
      return req.status, req:json()
    end
    local id = run({ code = "x = 5", session = "new" }).session
    assert.same({ 200, { canceled = false } }, { ask { session = id } })
    assert.equal(404, (ask { session = "unknown" }))
    assert.equal(400, (ask {}))
    for _, code in ipairs { "sleep(1000)", "local ok = pcall(sleep, 1000) sleep(1000)",
      "gather { function() sleep(1000) end, function() sleep(1000) end }",
      "coroutine.wrap(function() sleep(1000) end)()" } do
      local req = start { code = code, session = id }
      assert.same({ 200, { canceled = true } }, { ask { session = id } })
      fake.loop()
      local messages = req:messages()
      assert.equal("canceled", messages[#messages - 1].error.code, code)
      assert.same({ exit = 130 }, messages[#messages])
      assert.equal("5\n", run({ code = "x", session = id }).result)
    end
  end)

  it("completes, with the names of the session, also while it works", function()
    local function ask(body)
      local req = post("/v1/lua/complete", body)
      return req.status, req:json()
    end
    local id = run({ code = "my_table = {alpha = 1, beta = 2}", session = "new" }).session
    assert.same({ 200, { items = { "alpha", "beta" }, from = 10 } }, { ask { session = id, code = "my_table." } })
    assert.same({ items = json.array(), from = 10 }, (select(2, ask { code = "my_table." })))
    start { code = "sleep(0.01)", session = id }
    assert.same({ "alpha" }, select(2, ask { session = id, code = "my_table.a" }).items)
    fake.loop()
    assert.equal(404, (ask { session = "unknown", code = "" }))
    assert.equal(400, (ask { session = id }))
    assert.equal(413, (ask { code = ("x"):rep(2 << 20) }))
  end)

  it("logs who ran what, without secrets", function()
    local function last() return fake.logged[#fake.logged] end
    run { code = "return 1\n\t+ 1" }
    assert.equal("info: lua: uid 0, pid nil: return 1 + 1", last())
    local id = run({ code = "x('SYMTKN-1-abc-def')", session = "new" }).session
    assert.equal(("info: lua: uid 0, pid nil, session %s: x('(token)')"):format(id:sub(1, 8)), last())
    run { code = "f(", session = id }
    assert.truthy(last():find("x('(token)')", 1, true), "what is not finished has not run")
    run { code = ("-"):rep(5000) .. "\27[31m" }
    assert.truthy(last():find("^info: lua: .*%-%-%-%.%.%. %(5005 bytes%)$"))
  end)

  it("drops what runs when the client goes away", function()
    local req = start { code = "pcall(sleep, 1000) ended = true", session = "new" }
    req:leave()
    fake.loop()
    assert.is_nil(req.finished and req.aborted)
  end)

  it("prints also from coroutines of the code's own", function()
    assert.equal("inside\n", run({ code = "coroutine.wrap(function() print('inside') end)()" }).out)
  end)

  it("is for the control socket only", function()
    assert.equal(401, start({ code = "1" }, { tls = true }).status)
    package.loaded["symphony.cluster.state"] = nil
    assert.equal(403, start({ code = "1" }, { tls = true, cn = "o", ou = "operator" }).status)
  end)

  it("refuses what is no code", function()
    assert.equal(400, start({}).status)
    assert.equal(400, start({ code = 5 }).status)
  end)

  it("leaves the loop to others while it waits", function()
    local went = false
    start { code = "sleep(0.005)" }
    async.spawn(function()
      went = true
    end)
    assert.is_true(went)
    fake.loop()
  end)
end)
