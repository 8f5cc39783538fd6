require "spec.unit.fake"
local uv = require "luv"
local sys = require "sym.sys"

local environment = {}
sys.getenv = function(name) return environment[name] end
sys.write_file = function(path, text)
  local file = assert(io.open(path, "wb"))
  file:write(text)
  file:close()
  return true
end

local console = require "symphony.repl.console"
local history = require "symphony.repl.history"

describe("what Tab does", function()
  it("inserts what all have in common, else shows the list", function()
    assert.same({ nil }, { console.completed({}, 0) })
    assert.same({ nil }, { console.completed(nil, 0) })
    assert.same({ "t" }, { console.completed({ "get" }, 2) })
    assert.same({ nil }, { console.completed({ "get" }, 3) })
    assert.same({ "et" }, { console.completed({ "get", "get_all" }, 1) })
    assert.same({ nil, "get  put\n" }, { console.completed({ "get", "put" }, 0, 80) })
    -- Never half of a character.
    assert.same({ nil, "a\u{e4}  a\u{e5}\n" }, { console.completed({ "a\u{e4}", "a\u{e5}" }, 1, 80) })
  end)

  it("fits the list into the width, and says what it leaves out", function()
    assert.equal("a   c\nbb  d\n", console.columns({ "a", "bb", "c", "d" }, 9))
    assert.equal("a\nbb\n", console.columns({ "a", "bb" }, 3))
    local many = {}
    for i = 1, 250 do many[i] = ("%03d"):format(i) end
    local _, list = console.completed(many, 0, 80)
    assert.truthy(list:find("200", 1, true) and not list:find("201", 1, true) and list:find("\nand 50 more\n$"))
  end)
end)

describe("the history", function()
  local folder
  before_each(function()
    folder = assert(uv.fs_mkdtemp((os.getenv("TMPDIR") or "/tmp") .. "/symphony-spec-XXXXXX"))
  end)
  after_each(function()
    os.execute(("rm -rf -- '%s'"):format(folder))
  end)

  it("is where the state of programs is kept", function()
    environment = { XDG_STATE_HOME = "/s", HOME = "/h" }
    assert.equal("/s/symphony/lua_history", history.path())
    environment = { XDG_STATE_HOME = "relative", HOME = "/h" }
    assert.equal("/h/.local/state/symphony/lua_history", history.path())
    environment = { HOME = "/h" }
    assert.equal("/h/.local/state/symphony/lua_history", history.path())
    environment = {}
    assert.is_nil(history.path())
    assert.same({}, history.load(nil))
    history.add(nil, { "a" })
  end)

  it("is for its owner only, and lasts", function()
    local path = folder .. "/new/symphony/lua_history"
    assert.same({}, history.load(path))
    history.add(path, { "one", "two" })
    history.add(path, { "three" })
    history.add(path, {})
    assert.same({ "one", "two", "three" }, history.load(path))
    assert.equal("600", ("%o"):format(uv.fs_stat(path).mode & 511))
    assert.equal("700", ("%o"):format(uv.fs_stat(folder .. "/new/symphony").mode & 511))
    -- One that others could read is so no longer.
    uv.fs_chmod(path, 420)
    history.add(path, { "four" })
    assert.equal("600", ("%o"):format(uv.fs_stat(path).mode & 511))
  end)

  it("is cut when it has grown", function()
    local path = folder .. "/lua_history"
    local lines = {}
    for i = 1, 2001 do lines[i] = "line " .. i end
    history.add(path, lines)
    local kept = history.load(path)
    assert.same({ 1000, "line 1002", "line 2001" }, { #kept, kept[1], kept[1000] })
    assert.equal(1000, select(2, io.open(path):read("a"):gsub("\n", "")))
  end)

  it("has the lines of what was typed, and none of what holds a secret", function()
    assert.same({ "for i = 1, 2 do", "end" }, history.lines("for i = 1, 2 do\n\n  \nend"))
    assert.same({}, history.lines("x = [[\n-----BEGIN PRIVATE KEY-----\nMHcCAQ\n]]"))
    assert.same({}, history.lines("join('SYMTKN-1-abc-def')"))
    assert.same({}, history.lines(("x"):rep(5000)))
  end)

  it("keeps nobody from working", function()
    history.add("/proc/none/symphony/lua_history", { "a" })
    assert.same({}, history.load("/proc/none/symphony/lua_history"))
  end)
end)
