--- The client's side of `symphony lua`.
local async = require "symphony.async"
local errors = require "symphony.errors"
local lazy = require "symphony.lazy"
local program = require "symphony.repl.program"
local sys = require "sym.sys"

local history = lazy "symphony.repl.history"

local M = {}

local CANCEL_MS = 5000
local LISTED = 200 -- of what may follow

-- Sends a piece of code and prints what comes: its status, whether more input is wanted, the session. A Ctrl-C
-- meanwhile calls @on_interrupt(seen) (nil: it ends the program).
local function run(ctx, request, on_interrupt)
  local seen = { session = request.session ~= "new" and request.session or nil }
  local stream = program.receiver(ctx, seen)
  request.json, request.color = ctx.json, ctx.color
  local _, err = ctx.call("POST", "/v1/lua", request, {
    on_data = function(chunk)
      stream(chunk)
      io.stdout:flush()
    end,
    on_interrupt = on_interrupt and function() on_interrupt(seen) end,
  })
  if err then
    return nil, err
  elseif not seen.exit then
    return nil, errors.new("protocol", "the daemon's answer has no end")
  end
  return seen
end

-- Code that is given as a whole: what is unfinished is an error.
local function batch(ctx, request)
  local seen, err = run(ctx, request)
  if not seen then
    return nil, err
  elseif seen.more then
    program.complain(ctx, seen.late)
  end
  ctx.status, ctx.printed = seen.exit, true
end

-- At the terminal ---------------------------------------------------------------------------------------------------

local function ignore() end

-- Lines from whatever is there: read(prompt) gives a line; nil at the end; nil, true after a Ctrl-C.
local function plain_input()
  return {
    read = function(prompt)
      io.stdout:write(prompt)
      io.stdout:flush()
      return io.read("l")
    end,
    remember = ignore,
    close = ignore,
  }
end

local function common_prefix(items)
  local first, last = items[1], items[#items] -- they are sorted
  local n = 0
  while n < #first and first:byte(n + 1) == last:byte(n + 1) do n = n + 1 end
  return first:sub(1, utf8.len(first:sub(1, n)) and n or 0)
end

-- @items in as many columns as fit.
function M.columns(items, width)
  local widest = 0
  for _, item in ipairs(items) do widest = math.max(widest, utf8.len(item) or #item) end
  local columns = math.max(1, (width or 80) // (widest + 2))
  local rows, out = (#items + columns - 1) // columns, {}
  for row = 1, rows do
    local cells = {}
    for i = row, #items, rows do
      cells[#cells + 1] = items[i] .. (i + rows <= #items and (" "):rep(widest + 2 - (utf8.len(items[i]) or #items[i]))
        or "")
    end
    out[row] = table.concat(cells)
  end
  return table.concat(out, "\n") .. "\n"
end

--- What Tab does with @items, of which the last @typed bytes of the line are the beginning: text to insert, or a list
--- to show; neither if there is nothing.
function M.completed(items, typed, width)
  if not items or #items == 0 then return nil end
  local common = common_prefix(items)
  if #common > typed then return common:sub(typed + 1) end
  if #items == 1 then return nil end
  local more = #items - LISTED
  local shown = more > 0 and table.move(items, 1, LISTED, 1, {}) or items
  return nil, M.columns(shown, width) .. (more > 0 and ("and %d more\n"):format(more) or "")
end

-- Lines that are edited. @complete(text) says what may follow: items, and how many bytes of them are there.
local function edited_input(ctx, complete)
  local editor = require("sym.edit").open()
  if not editor then return plain_input() end
  local uv = require "luv"
  local path = history.path()
  for _, line in ipairs(history.load(path)) do editor:remember(line) end
  editor:on_complete(function(_, text)
    async.spawn(function()
      local items, typed = complete(text)
      if editor:line() ~= text then return end
      local insert, list = M.completed(items, typed, sys.winsize() or ctx.width)
      if insert then editor:insert(insert) elseif list then editor:show(list) end
    end)
  end)
  local interrupt, others = uv.new_signal(), { uv.new_signal(), uv.new_signal() }
  for i, name in ipairs { "sigwinch", "sigcont" } do
    others[i]:start(name, function() editor:redraw() end)
  end
  return {
    read = function(prompt)
      interrupt:start("sigint", function() editor:interrupt() end)
      local line, interrupted = async.await(function(cb) editor:read(prompt, cb) return true end)
      interrupt:stop()
      return line, interrupted
    end,
    remember = function(code)
      local kept = history.lines(code)
      for _, line in ipairs(kept) do editor:remember(line) end
      history.add(path, kept)
    end,
    close = function()
      interrupt:close()
      for _, signal in ipairs(others) do signal:close() end
      editor:close()
    end,
  }
end

local function interactive(ctx)
  local session, pending = "new", nil

  local function complete(text)
    local code = pending and pending .. "\n" .. text or text
    local found = ctx.call("POST", "/v1/lua/complete", { code = code, session = session },
      { timeout_ms = CANCEL_MS, on_interrupt = ignore })
    if type(found) ~= "table" or type(found.items) ~= "table" or math.type(found.from) ~= "integer" then return nil end
    return found.items, #code - found.from + 1
  end

  -- The first Ctrl-C stops the code, in the daemon; a second one gives up.
  local function on_interrupt(seen)
    if seen.stopped or not seen.session then return ctx.quit(130) end
    seen.stopped = true
    ctx.err("\n") -- the terminal has shown ^C
    async.spawn(function()
      ctx.call("POST", "/v1/lua/cancel", { session = seen.session }, { timeout_ms = CANCEL_MS, on_interrupt = ignore })
    end)
  end

  ctx.out(("symphony %s: Lua in the daemon at %s; help() says what there is, Ctrl-D ends\n"):format(sys.version,
    ctx.socket))
  local input = ctx.edits and edited_input(ctx, complete) or plain_input()
  local _ <close> = setmetatable({}, { __close = function() input.close() end })

  while true do
    local line, interrupted = input.read(pending and ">> " or "> ")
    if interrupted then
      pending = nil
    elseif not line then
      ctx.out("\n")
      return
    else
      local code = pending and pending .. "\n" .. line or line
      pending = nil
      if code:match("%S") then
        local seen, err = run(ctx, { code = code, session = session, name = "=lua" }, on_interrupt)
        if not seen or not seen.more then input.remember(code) end
        if seen and seen.ended then
          ctx.status, ctx.printed = seen.exit, true
          return
        elseif seen then
          session = seen.session or session
          pending = seen.more and code or nil
        else
          program.complain(ctx, err)
          if err.code == "not_found" then
            session = "new"
          elseif err.code == "no_daemon" then
            return nil, err
          end
        end
      end
    end
  end
end

--- Runs the command `lua`; returns nil, err or nothing.
function M.run(ctx)
  local request, err = program.request(ctx.args, ctx.interactive)
  if request then
    return batch(ctx, request)
  elseif err then
    return nil, err
  end
  async.sleep(0) -- the loop's time is up to date before the first wait
  return interactive(ctx)
end

return M
