-- contrib/services/process/log.lua: what is kept of what a program writes, with real files.
package.path = "contrib/?.lua;" .. package.path
local fake = require "spec.unit.cluster_fake" -- with the luv that all files share
local async = require "symphony.async"
local files = require "spec.support.files"
local log = require "services.process.log"
local uv = require "luv"

-- fn(l, dir): a log in a folder of its own, in a task.
local function scenario(fn)
  return function()
    local dir = assert(uv.fs_mkdtemp("/tmp/process-log-XXXXXX"))
    local ok, err = pcall(fake.run, function() fn(log.new(dir), dir) end)
    for _, name in ipairs { "log", "log.1", "log.1.new" } do uv.fs_unlink(dir .. "/" .. name) end
    uv.fs_rmdir(dir)
    if not ok then error(err, 0) end
  end
end

-- All from @at to @stop, piece by piece; between() after each.
local function whole(l, at, stop, between)
  local parts, gone = {}, 0
  while at < stop do
    local text, next_at, lost = l:piece(at, stop)
    if text == "" then break end
    parts[#parts + 1], gone, at = text, gone + lost, next_at
    if between then between(#parts) end
  end
  return table.concat(parts), gone, #parts
end

-- The last @lines lines of @text, by another way.
local function tail_of(text, lines)
  local list = {}
  for line in text:gmatch("[^\n]*\n?") do list[#list + 1] = line ~= "" and line or nil end
  return table.concat(list, "", math.max(1, #list - lines + 1))
end

local function numbered(from, to)
  local list = {}
  for i = from, to do list[#list + 1] = ("line %d, of some length or other\n"):format(i) end
  return table.concat(list)
end

describe("a program's log", function()
  it("is read whole in pieces that end with lines, over both files", scenario(function(l, dir)
    assert.equal("", (whole(l, 0, l:stop())))
    local older, newer = numbered(1, 20000), numbered(20001, 30000)
    files.write(dir .. "/log.1", older)
    files.write(dir .. "/log", newer)
    l = log.new(dir)
    local text, gone, pieces = whole(l, l.first, l:stop())
    assert.is_true(text == older .. newer)
    assert.equal(0, gone)
    assert.is_true(pieces > 5)
    for _, part in ipairs { (l:piece(0, l:stop())) } do assert.equal("\n", part:sub(-1)) end
    -- Where there is no end of a line there is none to wait for.
    files.write(dir .. "/log", ("x"):rep(300000))
    text = whole(l, l.cut, l:stop())
    assert.equal(300000, #text)
  end))

  it("has its last lines found from behind", scenario(function(_, dir)
    for _, case in ipairs { { "", "a\nb\n" }, { "", "a\nb" }, { "a\nb\n", "c\n" }, { "a\nb", "c\nd" }, { "", "\n\n\n" },
      { "", "" }, { "a\n", "" }, { numbered(1, 9000), numbered(9001, 20000) }, { "", ("x"):rep(200000) .. "\nend" },
      { ("x"):rep(131072), ("\n"):rep(131072) } } do
      files.write(dir .. "/log.1", case[1])
      files.write(dir .. "/log", case[2])
      local l = log.new(dir)
      local all = case[1] .. case[2]
      for _, lines in ipairs { 0, 1, 2, 3, 5000, 10000, 1000000 } do
        local text = whole(l, l:last(lines, l:stop()), l:stop())
        if text ~= tail_of(all, lines) then
          error(("the last %d lines of %q, %q"):format(lines, all:sub(1, 50), all:sub(-50)))
        end
      end
    end
  end))

  it("is short also when much comes while it is cut", scenario(function(l, dir)
    files.write(dir .. "/log", numbered(1, 2000))
    local real = uv.fs_sendfile
    uv.fs_sendfile = function(...)
      uv.fs_sendfile = real
      files.write(dir .. "/log", numbered(2001, 4000), "a")
      return real(...)
    end
    local ok, err = l:trim(20000)
    uv.fs_sendfile = real
    assert.is_true(ok, err)
    local text = whole(l, l.first, l:stop())
    assert.equal(10000, #text)
    assert.truthy(text:find("line 4000,", 1, true))
  end))

  it("is cut to what is allowed, and who reads it meanwhile misses only what is gone", scenario(function(l, dir)
    files.write(dir .. "/log", numbered(1, 1000))
    local all = #numbered(1, 1000)
    assert.is_true(l:trim(1 << 20))
    assert.equal(0, l.cut) -- it is short enough
    assert.is_true(l:trim(20000))
    assert.same({ "", 10000 }, { files.read(dir .. "/log"), #files.read(dir .. "/log.1") })
    assert.same({ all - 10000, all }, { l.first, l:stop() })
    files.write(dir .. "/log", "more\n", "a")
    local text, gone = whole(l, 0, l:stop())
    assert.equal(numbered(1, 1000):sub(-10000) .. "more\n", text)
    assert.equal(all - 10000, gone)
    -- Between two pieces of a reader.
    local before = numbered(1, 20000)
    files.write(dir .. "/log", before)
    local begin = l.cut
    text, gone = whole(l, begin, l:stop(), function(count)
      if count == 2 then l:trim(200000) end
    end)
    assert.is_true(gone > 0)
    assert.equal(#before, #text + gone)
    assert.equal(before:sub(-50000), text:sub(-50000))
  end))

  it("is read on where somebody has taken a file away", scenario(function(_, dir)
    files.write(dir .. "/log.1", numbered(1, 1000))
    files.write(dir .. "/log", "more\n")
    local l = log.new(dir)
    assert(uv.fs_unlink(dir .. "/log.1"))
    local text, gone = whole(l, 0, l:stop())
    assert.same({ "more\n", #numbered(1, 1000) }, { text, gone })
    assert(uv.fs_unlink(dir .. "/log"))
    assert.same({ "", 0, 0 }, { whole(l, l.cut, l.cut + 5) })
  end))

  it("is emptied also when its end cannot be kept", scenario(function(l, dir)
    files.write(dir .. "/log", numbered(1, 1000))
    assert(uv.fs_mkdir(dir .. "/log.1.new", 448))
    local ok, err = l:trim(20000)
    uv.fs_rmdir(dir .. "/log.1.new")
    assert.is_nil(ok)
    assert.equal("io", err.code)
    assert.equal("", files.read(dir .. "/log"))
    files.write(dir .. "/log", "more\n", "a")
    local text, gone = whole(l, 0, l:stop())
    assert.same({ "more\n", #numbered(1, 1000) }, { text, gone })
  end))

  it("tells at once who waits for more", scenario(function(l, dir)
    files.write(dir .. "/log", "one\n")
    assert.is_true(l:wait(0, 10000))
    -- Told by the system, not by its own clock.
    local function wait(at) return async.with_timeout(20000, l.wait, l, at, 60000) end
    async.spawn(function()
      async.sleep(20)
      files.write(dir .. "/log", "two\n", "a")
    end)
    assert.is_true(wait(4))
    assert.equal(8, l:stop())
    assert.is_false(l:wait(8, 20))
    async.spawn(function()
      async.sleep(20)
      l:close()
      uv.fs_unlink(dir .. "/log")
    end)
    assert.is_false(wait(8))
  end))
end)
